# doubletick: a PostgreSQL extension that calls the DoubleTick API.
#
#   make && make install        build and install (PG_CONFIG=… for another server)
#   make installcheck           run every test in throwaway clusters, not as root
#   make sandbox                build the local stand-in for the API
#   make dist                   make the zip for PGXN
#   make pictures               draw doc/flow.svg anew (Debian: graphviz)
#   make indent                 bring src/ into pgindent's shape (Debian: pg-bsd-indent)

# Where the sources are: the build may run elsewhere, as Debian's does
# (make -f /elsewhere/Makefile).  Taken before PGXS adds to the list of makefiles.
source := $(patsubst %/,%,$(dir $(firstword $(MAKEFILE_LIST))))

MODULE_big = doubletick
OBJS = \
	src/account/account.o \
	src/account/enabled.o \
	src/account/option.o \
	src/account/url.o \
	src/api/allocation.o \
	src/api/answer.o \
	src/api/capacity.o \
	src/api/counters.o \
	src/api/endpoint.o \
	src/api/handle.o \
	src/api/http.o \
	src/api/inbox.o \
	src/api/libcurl.o \
	src/api/outcome.o \
	src/api/pace.o \
	src/api/payload.o \
	src/api/poll_set.o \
	src/api/sockets.o \
	src/api/transfer_clock.o \
	src/api/trust.o \
	src/base/clock.o \
	src/base/extension.o \
	src/base/fault.o \
	src/base/fault_point.o \
	src/base/names.o \
	src/base/phone.o \
	src/base/shared.o \
	src/base/wait_event.o \
	src/call/call.o \
	src/call/call_scan.o \
	src/call/cursor_row.o \
	src/call/executor.o \
	src/call/expression.o \
	src/call/function.o \
	src/call/open_calls.o \
	src/call/remove.o \
	src/call/rewrite.o \
	src/check/agreement.o \
	src/check/check.o \
	src/check/connection.o \
	src/check/queue.o \
	src/check/servers.o \
	src/check/triggers.o \
	src/doubletick.o \
	src/drain/after_error.o \
	src/drain/customer.o \
	src/drain/discover.o \
	src/drain/drain.o \
	src/drain/hold.o \
	src/drain/lane.o \
	src/drain/outcome.o \
	src/drain/process_queue.o \
	src/drain/request.o \
	src/drain/ring.o \
	src/drain/schedule.o \
	src/drain/send.o \
	src/drain/settle.o \
	src/drain/split_answer.o \
	src/drain/tally.o \
	src/drain/turn.o \
	src/queue/cancel.o \
	src/queue/citus.o \
	src/queue/customer_number.o \
	src/queue/enqueue.o \
	src/queue/enqueue_functions.o \
	src/queue/history.o \
	src/queue/ids.o \
	src/queue/locks.o \
	src/queue/phones.o \
	src/queue/relations.o \
	src/queue/replicated.o \
	src/queue/retry.o \
	src/queue/shape.o \
	src/queue/store.o \
	src/queue/update.o \
	src/queue/waiting.o \
	src/queue/wakeup.o \
	src/settings.o \
	src/testing.o \
	src/trigger/columns.o \
	src/trigger/definition.o \
	src/trigger/difference.o \
	src/trigger/gains.o \
	src/trigger/row.o \
	src/trigger/statement.o \
	src/trigger/trigger.o \
	src/worker/launcher.o \
	src/worker/process.o \
	src/worker/sample.o \
	src/worker/status.o \
	src/worker/stored_settings.o \
	src/worker/worker.o

EXTENSION = doubletick
DATA = $(patsubst $(source)/%,%,$(wildcard $(source)/sql/doubletick--*.sql))

REGRESS = options arguments errors privileges queue
REGRESS_OPTS = --inputdir=$(source)/test --temp-instance=tmp_regress --encoding=UTF8 --no-locale
REGRESS_PREP = $(CURDIR)/expected
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl
EXTRA_CLEAN = tmp_regress log

PG_CONFIG ?= pg_config
# The version of a release, and that of its SQL objects (see src/README, Releases).
DOUBLETICK_VERSION := $(shell sed -n 's/^\t"version": "\(.*\)",/\1/p' '$(source)/META.json')
DOUBLETICK_SQL_VERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" '$(source)/doubletick.control')
ifeq ($(and $(DOUBLETICK_VERSION),$(DOUBLETICK_SQL_VERSION)),)
$(error could not read the versions from META.json and doubletick.control in $(source))
endif
CURL_CONFIG ?= curl-config
PG_CPPFLAGS = -I$(source)/src $(shell $(CURL_CONFIG) --cflags)
PG_CPPFLAGS += -DDOUBLETICK_VERSION='"$(DOUBLETICK_VERSION)"' -DDOUBLETICK_SQL_VERSION='"$(DOUBLETICK_SQL_VERSION)"'
# As system headers, PostgreSQL's own do not drown the warnings about ours.
PG_CPPFLAGS += -isystem $(shell $(PG_CONFIG) --includedir-server)
# Fault points, and what else only tests need (see src/testing.c).
ifdef TESTING
PG_CPPFLAGS += -DDOUBLETICK_TESTING
SHLIB_LINK = -Wl,--wrap=AllocSetContextCreateInternal
endif
PG_CFLAGS = -Wall -Wextra
SHLIB_LINK += $(shell $(CURL_CONFIG) --libs)

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Out of the source tree, the folders of the objects are not there yet.  Their
# paths are absolute, else make would find those of the sources.
object_dirs := $(addprefix $(CURDIR)/,$(sort $(dir $(OBJS))))
$(OBJS) $(OBJS:.o=.bc): | $(object_dirs)
$(object_dirs):
	mkdir -p $@

# PGXS knows no headers: after a change of one, everything is built anew.
$(OBJS): $(wildcard $(source)/src/*.h $(source)/src/*/*.h)

# pg_regress looks for expected/ where it runs.
$(CURDIR)/expected:
	ln -s '$(abspath $(source))/expected' $@
clean: clean-expected
clean-expected:
	test ! -L expected || rm expected

# The zip for PGXN: what is committed.
dist:
	git -C '$(source)' archive --format=zip --prefix=doubletick-$(DOUBLETICK_VERSION)/ \
		-o '$(CURDIR)/doubletick-$(DOUBLETICK_VERSION).zip' HEAD

# PostgreSQL::Test starts the sandbox from its place in the tree.
sandbox:
	$(MAKE) -C '$(source)/test/sandbox'
installcheck: sandbox

clean: clean-sandbox
clean-sandbox:
	$(MAKE) -C '$(source)/test/sandbox' clean

# pgindent's options for pg_bsd_indent, and its repair of function headers.  Our own types
# are looked up; typedefs.list has those of PostgreSQL and libcurl that we use.
INDENT = pg_bsd_indent -bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 -i4 -l79 -lp \
	-lpl -nip -npro -sac -tpg -ts4 -Utypedefs.all
indent:
	{ cat typedefs.list; \
	sed -nE 's/^\}[[:space:]]*([A-Z][A-Za-z]*);.*/\1/p; s/^typedef .*[ *]([A-Z][A-Za-z]*);$$/\1/p; s/^typedef .*\(\*([A-Z][A-Za-z]*)\).*/\1/p' \
		src/*.[ch] src/*/*.[ch]; } | sort -u >typedefs.all
	for f in src/*.[ch] src/*/*.[ch]; do \
		$(INDENT) <$$f | sed 's/^\([A-Za-z_]*\)[\t ]\{1,\}\*$$/\1 */' >$$f.new && mv $$f.new $$f || exit 1; \
	done
	rm typedefs.all

pictures:
	dot -Tsvg '$(source)/doc/flow.dot' >'$(source)/doc/flow.svg'

.PHONY: pictures dist sandbox clean-sandbox clean-expected indent
