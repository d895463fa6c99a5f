/** The same bytes in buffers of their own that can be handed to a thread, each of `length` bytes but the last. */
export async function* inMessages(
  chunks: AsyncIterable<Uint8Array>,
  length: number,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let message = Buffer.allocUnsafeSlow(length);
  let filled = 0;
  for await (const chunk of chunks) {
    for (let at = 0; at < chunk.length; ) {
      const part = chunk.subarray(at, at + message.length - filled);
      message.set(part, filled);
      filled += part.length;
      at += part.length;
      if (filled < message.length) continue;
      yield message;
      message = Buffer.allocUnsafeSlow(length);
      filled = 0;
    }
  }
  if (filled > 0) yield message.subarray(0, filled);
}
