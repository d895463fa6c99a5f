import type { LayerIndex } from '#shared/layer/layer-index.ts';

/** What an index says of its layer, in numbers. */
export interface IndexSummary {
  readonly format: string;
  readonly entries: number;
  readonly spans: number;
  /** Spans that a start fetches before anyone asks. */
  readonly prioritySpans: number;
  /** Decoded bytes of the largest span: what the first byte of a file may cost. */
  readonly largestSpanBytes: number;
  readonly contentBytes: number;
}

export function summaryOf(index: LayerIndex): IndexSummary {
  return {
    format: index.format,
    entries: index.entries.length,
    spans: index.spans.length,
    prioritySpans: index.prioritySpans,
    largestSpanBytes: index.spans.reduce((most, span) => Math.max(most, span.streamLength), 0),
    contentBytes: index.entries.reduce((sum, entry) => sum + entry.size, 0),
  };
}
