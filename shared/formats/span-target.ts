/**
 * Decoded bytes up to which small TOC chunks are put together into one span. Larger spans cost a miss more bytes, smaller
 * ones cost more requests and bookkeeping; 512 KiB at 100 Mbit/s is about 20 ms compressed, the price of one round trip.
 */
export const SPAN_TARGET_BYTES = 512 * 1024;
