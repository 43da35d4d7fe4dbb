# doubletick: a PostgreSQL extension that calls the DoubleTick API.
#
#   make && make install        build and install (PG_CONFIG=… for another server)
#   make installcheck           run every test in throwaway clusters, not as root
#   make sandbox                build the local stand-in of the API
#   make indent                 bring src/ into pgindent's shape (Debian: pg-bsd-indent)

MODULE_big = doubletick
OBJS = \
	src/account.o \
	src/answer.o \
	src/batch.o \
	src/change.o \
	src/claim.o \
	src/column.o \
	src/definition.o \
	src/doubletick.o \
	src/drain.o \
	src/due.o \
	src/fault.o \
	src/fill.o \
	src/flight.o \
	src/gains.o \
	src/history.o \
	src/hold.o \
	src/http.o \
	src/inbox.o \
	src/lane.o \
	src/launcher.o \
	src/names.o \
	src/object.o \
	src/option.o \
	src/outcome.o \
	src/part.o \
	src/payload.o \
	src/process.o \
	src/queue.o \
	src/rate.o \
	src/remove.o \
	src/report.o \
	src/settings.o \
	src/shared.o \
	src/statement.o \
	src/store.o \
	src/testing.o \
	src/trigger.o \
	src/wake.o \
	src/worker.o

EXTENSION = doubletick
DATA = sql/doubletick--1.0.0.sql

REGRESS = options arguments errors privileges queue
REGRESS_OPTS = --inputdir=test --temp-instance=tmp_regress --encoding=UTF8 --no-locale
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl
EXTRA_CLEAN = tmp_regress log

PG_CONFIG ?= pg_config
DOUBLETICK_VERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" doubletick.control)
CURL_CONFIG ?= curl-config
PG_CPPFLAGS = $(shell $(CURL_CONFIG) --cflags) -DDOUBLETICK_VERSION='"$(DOUBLETICK_VERSION)"'
# As system headers, PostgreSQL's own do not drown the warnings about ours.
PG_CPPFLAGS += -isystem $(shell $(PG_CONFIG) --includedir-server)
# Fault points, and what else only tests need (see src/testing.c).
ifdef TESTING
PG_CPPFLAGS += -DDOUBLETICK_TESTING
endif
PG_CFLAGS = -Wall -Wextra
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs)

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PostgreSQL::Test starts the sandbox from its place in the tree.
sandbox:
	$(MAKE) -C test/sandbox

# pgindent's options for pg_bsd_indent, and its repair of function headers.
INDENT = pg_bsd_indent -bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 -i4 -l79 -lp \
	-lpl -nip -npro -sac -tpg -ts4 -Utypedefs.list
indent:
	for f in src/*.[ch]; do \
		$(INDENT) <$$f | sed 's/^\([A-Za-z_]*\)[\t ]\{1,\}\*$$/\1 */' >$$f.new && mv $$f.new $$f || exit 1; \
	done

clean-sandbox:
	$(MAKE) -C test/sandbox clean

.PHONY: sandbox clean-sandbox indent
installcheck: sandbox
clean: clean-sandbox
