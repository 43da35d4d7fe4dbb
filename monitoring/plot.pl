#!/usr/bin/env perl

# Draws the samples of plot-drain as SVG.  The argument is the server's rate_limit; a
# line of input has, separated by tabs: seconds, removals that wait, removals done,
# requests per second, and whether requests are held.

use strict;
use warnings;

use List::Util qw(max);

my ($rate_limit) = @ARGV;
my @samples = map { chomp; [ split /\t/ ] } <STDIN>;
my ($width, $left, $right) = (760, 70, 20);
my $first = $samples[0][0];
my $seconds = $samples[-1][0] - $first;

sub x { return sprintf '%.1f', $left + ($_[0] - $first) / $seconds * ($width - $left - $right); }

sub line
{
	my ($x1, $y1, $x2, $y2, $style) = @_;

	print qq{<line x1="$x1" y1="$y1" x2="$x2" y2="$y2" $style/>\n};
	return;
}

sub text
{
	my ($x, $y, $text, $style) = @_;

	print qq{<text x="$x" y="$y" $style>$text</text>\n};
	return;
}

# One diagram: its top and height, the highest value, the step of its grid, and its
# curves, each a column of the samples with a colour.
sub diagram
{
	my (%d) = @_;
	my $y = sub { return sprintf '%.1f', $d{top} + $d{height} * (1 - $_[0] / $d{highest}); };

	# Times in which requests are held.
	foreach my $i (1 .. $#samples)
	{
		next unless $samples[$i][4] eq 't';
		my ($from, $to) = (x($samples[ $i - 1 ][0]), x($samples[$i][0]));
		printf qq{<rect x="$from" y="$d{top}" width="%.1f" height="$d{height}" fill="#f6d9b8"/>\n}, $to - $from + 0.3;
	}
	for (my $value = 0; $value <= $d{highest}; $value += $d{step})
	{
		line($left, $y->($value), $width - $right, $y->($value), 'stroke="#dddddd"');
		text($left - 8, $y->($value) + 4, $value, 'text-anchor="end"');
	}
	for (my $second = 0; $second <= $seconds; $second += 10)
	{
		text(x($first + $second), $d{top} + $d{height} + 18, "$second s", 'text-anchor="middle"');
	}
	my $at = $left;
	foreach my $curve (@{ $d{curves} })
	{
		my ($column, $color, $name) = @{$curve};

		printf qq{<polyline fill="none" stroke="$color" stroke-width="2" points="%s"/>\n},
		  join ' ', map { x($_->[0]) . ',' . $y->($_->[$column]) } @samples;
		line($at, $d{top} - 14, $at + 20, $d{top} - 14, qq{stroke="$color" stroke-width="2"});
		text($at + 26, $d{top} - 10, $name, '');
		$at += 170;
	}
	return $y;
}

print qq{<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 $width 520" width="$width" height="520"\n},
  qq{	font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="#333333">\n},
  qq{<title>dt_status while a queue is sent</title>\n<rect width="100%" height="100%" fill="white"/>\n};

my $most = max map { ($_->[1], $_->[2]) } @samples;
diagram(top => 50, height => 220, highest => 1000 * int(($most + 999) / 1000), step => 1000,
	curves => [ [ 1, '#1f5fa8', 'waiting' ], [ 2, '#3a8a3a', 'done_total' ] ]);

my $fastest = max $rate_limit, map { $_->[3] } @samples;
my $y = diagram(top => 340, height => 120, highest => 20 * int(($fastest + 19) / 20), step => 20,
	curves => [ [ 3, '#9c3587', 'rate (per second)' ] ]);
line($left, $y->($rate_limit), $width - $right, $y->($rate_limit), 'stroke="#333333" stroke-dasharray="4 4"');
text($width - $right - 4, $y->($rate_limit) - 5, "rate_limit $rate_limit", 'text-anchor="end"');

my ($held) = grep { $_->[4] eq 't' } @samples;
text(x($held->[0]) + 4, 64, 'held: paused after HTTP status 429', '') if $held;
print "</svg>\n";
