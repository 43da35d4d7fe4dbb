/*-------------------------------------------------------------------------
 *
 * worker/sample.c
 *		TABLESAMPLE dt_every_page(step): reads every step-th page of a table.
 *
 * For dt_status, which estimates a long queue.  What is sent leaves from a few ends of
 * the table, so that it has stretches without rows: pages at equal distances hit these
 * in proportion, while SYSTEM, which draws each page by chance, does so only roughly.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tsmapi.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "optimizer/optimizer.h"

typedef struct PageSampler
{
	uint32		step;
	BlockNumber next;			/* page to read */
	OffsetNumber tuple;			/* read last on the present page */
} PageSampler;

static void estimate_sample(PlannerInfo *root, RelOptInfo *baserel, List *arguments,
							BlockNumber *pages, double *tuples);
static void init_sample(SampleScanState *node, int flags);
static void begin_sample(SampleScanState *node, Datum *arguments, int nargs, uint32 seed);
static BlockNumber next_page(SampleScanState *node, BlockNumber npages);
static OffsetNumber next_tuple(SampleScanState *node, BlockNumber page, OffsetNumber last);

PG_FUNCTION_INFO_V1(dt_every_page);

/*
 * dt_every_page(internal) returns tsm_handler
 */
Datum
dt_every_page(FunctionCallInfo fcinfo pg_attribute_unused())
{
	TsmRoutine *routine = makeNode(TsmRoutine);

	routine->parameterTypes = list_make1_oid(INT4OID);
	routine->repeatable_across_queries = true;
	routine->repeatable_across_scans = true;
	routine->SampleScanGetSampleSize = estimate_sample;
	routine->InitSampleScan = init_sample;
	routine->BeginSampleScan = begin_sample;
	routine->NextSampleBlock = next_page;
	routine->NextSampleTuple = next_tuple;
	PG_RETURN_POINTER(routine);
}

/* For the planner, which does not know the step when dt_status is planned. */
static void
estimate_sample(PlannerInfo *root pg_attribute_unused(), RelOptInfo *baserel,
				List *arguments pg_attribute_unused(), BlockNumber *pages, double *tuples)
{
	*pages = Min(baserel->pages, 500);
	*tuples = clamp_row_est(baserel->tuples * *pages / Max(baserel->pages, 1));
}

static void
init_sample(SampleScanState *node, int flags pg_attribute_unused())
{
	node->tsm_state = palloc0(sizeof(PageSampler));
}

static void
begin_sample(SampleScanState *node, Datum *arguments, int nargs pg_attribute_unused(),
			 uint32 seed pg_attribute_unused())
{
	PageSampler *sampler = node->tsm_state;
	int32		step = DatumGetInt32(arguments[0]);

	if (step < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sample step must be at least 1")));
	sampler->step = step;
	sampler->next = step / 2;
	sampler->tuple = InvalidOffsetNumber;
}

static BlockNumber
next_page(SampleScanState *node, BlockNumber npages)
{
	PageSampler *sampler = node->tsm_state;
	BlockNumber page = sampler->next;

	if (page >= npages)
		return InvalidBlockNumber;
	sampler->next = page + Min(sampler->step, MaxBlockNumber - page);
	sampler->tuple = InvalidOffsetNumber;
	return page;
}

static OffsetNumber
next_tuple(SampleScanState *node, BlockNumber page pg_attribute_unused(), OffsetNumber last)
{
	PageSampler *sampler = node->tsm_state;

	if (sampler->tuple >= last)
		return InvalidOffsetNumber;
	return ++sampler->tuple;
}
