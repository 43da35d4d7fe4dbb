# doubletick: a PostgreSQL extension that calls the DoubleTick API.
#
#   make && make install        build and install (PG_CONFIG=… for another server)
#   make installcheck           run every test in throwaway clusters, not as root
#   make sandbox                build the local stand-in of the API
#   make indent-check           is src/ in the house's shape? (needs pgindent's tools)

MODULE_big = doubletick
OBJS = \
	src/account.o \
	src/answer.o \
	src/doubletick.o \
	src/fault.o \
	src/http.o \
	src/option.o \
	src/payload.o \
	src/rate.o \
	src/remove.o \
	src/settings.o

EXTENSION = doubletick
DATA = sql/doubletick--1.0.0.sql

REGRESS = options arguments errors privileges
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
PG_CFLAGS = -Wall -Wextra
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs)

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
