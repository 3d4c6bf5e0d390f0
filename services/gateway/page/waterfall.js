// Where the time went between a turn of the user and the first sound of the answer.

const NAMES = {
  endpointing: "end of turn",
  recognise: "recognise words",
  embed: "embed speech",
  prefill: "read",
  first_token: "first token",
  first_text: "first words",
  first_text_to_voice: "first words",
  first_audio: "voice",
  delivery: "network and speaker",
};

/**
 * A line that says how long it took and opens into a table with a bar for each hop.
 *
 * Args:
 *   report: {waterfall: [{hop, start_ms, duration_ms}], first_audio_ms, token_count, generate_ms}.
 *   heardMs: first sound at the speaker, counted as `first_audio_ms` is; null if not known.
 *   silentMs: from the decision to stop to silence at the speaker; null if it was not stopped.
 */
export function waterfall(report, heardMs, silentMs) {
  const spans = [...(report.waterfall ?? [])];
  const served = report.first_audio_ms;
  if (heardMs !== null && heardMs > served) {
    spans.push({ hop: "delivery", start_ms: served, duration_ms: heardMs - served });
  }
  const end = Math.max(1, ...spans.map((span) => span.start_ms + span.duration_ms));
  const details = element("details", "waterfall");
  details.append(element("summary", "", headline(report, heardMs ?? served, silentMs)));
  const table = element("table");
  table.append(element("caption", "unseen", "From your last word to the first sound"));
  const head = element("tr");
  for (const name of ["hop", "from", "took", ""]) {
    const cell = element(name ? "th" : "td", "", name);
    if (name) cell.scope = "col";
    head.append(cell);
  }
  table.append(element("thead"), element("tbody"));
  table.tHead.append(head);
  for (const { hop, start_ms: start, duration_ms: took } of spans) {
    const row = table.tBodies[0].insertRow();
    const name = element("th", "", NAMES[hop] ?? hop);
    name.scope = "row";
    const track = element("td", "track");
    const bar = element("span", hop === "delivery" ? "bar delivery" : "bar");
    bar.style.setProperty("--from", `${(100 * Math.max(0, start)) / end}%`);
    bar.style.setProperty("--long", `${(100 * took) / end}%`);
    track.append(bar);
    row.append(name, element("td", "number", milliseconds(start)), element("td", "number", milliseconds(took)), track);
  }
  details.append(table);
  details.addEventListener("toggle", () => details.open && details.scrollIntoView({ block: "nearest" }));
  const more = remarks(report);
  if (more) details.append(element("p", "small", more));
  return details;
}

function headline(report, firstMs, silentMs) {
  const parts = [];
  if (firstMs > 0) parts.push(`first sound after ${milliseconds(firstMs)}`);
  if (silentMs !== null) parts.push(`silent ${milliseconds(silentMs)} after the decision to stop`);
  if (report.outcome === "failed") parts.push("it could not be finished");
  return parts.join(" · ") || "how it went";
}

function remarks(report) {
  const parts = [];
  if (report.token_count > 1 && report.generate_ms > 0) {
    const rate = ((report.token_count - 1) * 1000) / report.generate_ms;
    parts.push(`${report.token_count} tokens, ${rate.toFixed(0)} a second`);
  }
  if (report.audio_ms > 0) {
    parts.push(`${(report.audio_ms / 1000).toFixed(1)} s of speech`);
    parts.push(`real-time factor ${(report.voice_compute_ms / report.audio_ms).toFixed(2)}`);
  }
  return parts.join(" · ");
}

function milliseconds(value) {
  return `${Math.round(value)} ms`;
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
