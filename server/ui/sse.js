/** Server-sent events: a stream of bytes → the data of each event. */

/**
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<string>} the data of each event; comments are left out.
 */
export async function* readEvents(stream) {
  let data = [];
  for await (const line of readLines(stream)) {
    if (line === "") {
      if (data.length) yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
}

async function* readLines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield line.replace(/\r$/, "");
    }
  } finally {
    await reader.cancel().catch(() => {}); // left early: the server should stop, too
  }
}
