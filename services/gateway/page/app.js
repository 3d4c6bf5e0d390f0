// Puts the parts of the page together.

import { Connection } from "./connection.js";
import { Curves } from "./curves.js";
import { Dialogue } from "./dialogue.js";
import { FloorStrip } from "./floor.js";
import { Microphone, MicrophoneError, SentTimes } from "./microphone.js";
import { encode } from "./pcm.js";
import { Settings } from "./settings.js";
import { Speaker } from "./speaker.js";
import { Transcript } from "./transcript.js";

const DRAW_MS = 60;
const CALM_DRAW_MS = 500;
// The last reports of what was played go out before the connection is closed.
const LAST_WORDS_MS = 200;

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const settings = new Settings(document);
const connection = new Connection();
const microphone = new Microphone();
const speaker = new Speaker();
const sentTimes = new SentTimes();
const floor = new FloorStrip($("floor"));
const curves = new Curves($("probabilities"), $("assistant-turn"), $("user-turn"));
const transcript = new Transcript($("words"));
const dialogue = new Dialogue({ connection, speaker, transcript, floor, curves, sentTimes });

let waitingText = null; // typed before there was a connection
let wasOpen = false;
let outage = false;
let closing = 0;
let drawing = false;

// --- what the page says

function announce(words) {
  $("announcer").textContent = words;
}

let act = null;

/** Shows a notice with, if given, something to do about it: [label, function]. */
function notify(words, action = null) {
  $("notice").hidden = !words;
  if ($("notice-text").textContent !== words) $("notice-text").textContent = words;
  act = action?.[1] ?? null;
  $("notice-action").hidden = !action;
  $("notice-action").textContent = action?.[0] ?? "";
}

$("notice-action").addEventListener("click", () => act?.());

function status() {
  if (connection.state === "waiting") return "Connection lost";
  if (connection.state === "connecting") return "Connecting";
  if (connection.state === "off") return "Off";
  if (outage) return "One moment";
  const holder = floor.holder;
  if (holder === "it") return "Speaking";
  if (holder === "both") return "Speaking, and listening";
  if (dialogue.answering) return "Thinking";
  return microphone.on ? "Listening" : "Microphone off";
}

function refresh() {
  const words = status();
  if ($("status").textContent !== words) $("status").textContent = words;
  document.body.dataset.state = connection.state;
  document.body.dataset.holder = floor.holder;
  $("talk").setAttribute("aria-pressed", String(microphone.on));
  $("talk-label").textContent = microphone.on ? "End" : "Talk";
  $("stop").disabled = !dialogue.answering;
  $("welcome").hidden = !transcript.empty;
  $("fresh").hidden = transcript.empty && !connection.sessionId;
}

// --- talking

async function openSpeaker() {
  if (!speaker.available) return;
  try {
    await speaker.choose(settings.get("speaker"));
    await speaker.open();
  } catch (error) {
    notify(`The browser could not start the speaker: ${error.message}. Answers come in writing.`);
  }
}

async function begin() {
  notify("");
  clearTimeout(closing);
  $("talk").disabled = true;
  try {
    await Promise.all([openSpeaker(), startMicrophone()]);
    connection.open();
  } catch (error) {
    if (!(error instanceof MicrophoneError)) throw error;
    notify(error.message, ["Try again", begin]);
    $("text").focus();
  } finally {
    $("talk").disabled = false;
    refresh();
  }
}

async function startMicrophone() {
  await microphone.start({
    deviceId: settings.get("microphone"),
    echoCancellation: settings.get("echo"),
  });
  await settings.listDevices();
}

function end() {
  microphone.stop();
  dialogue.stop();
  waitingText = null;
  notify("");
  closing = setTimeout(() => connection.close(), LAST_WORDS_MS);
  refresh();
}

async function type(text) {
  clearTimeout(closing);
  await openSpeaker();
  if (connection.state !== "open") {
    waitingText = text;
    connection.open();
  } else if (!(await dialogue.type(text))) {
    waitingText = text;
  }
}

function freshConversation() {
  const going = connection.state !== "off";
  dialogue.stop();
  connection.close();
  connection.sessionId = "";
  transcript.clear();
  notify("");
  if (going) connection.open();
  announce("A new conversation.");
  refresh();
}

function choices() {
  const names = ["instructions", "voice", "manner", "written"];
  const chosen = Object.fromEntries(names.map((name) => [name, settings.get(name)]));
  return { ...chosen, written: chosen.written || !speaker.available };
}

$("talk").addEventListener("click", () => (microphone.on ? end() : begin()));
$("stop").addEventListener("click", () => dialogue.stop());
$("fresh").addEventListener("click", freshConversation);
$("text-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  $("text").value = "";
  if (text) type(text);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.key = $("key").value.trim();
  $("key").value = "";
  $("key-form").hidden = true;
  notify("");
  connection.open();
  $("talk").focus();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open && dialogue.stop()) event.preventDefault();
});

microphone.addEventListener("frame", ({ detail: frame }) => {
  if (connection.send({ type: "input_audio_buffer.append", audio: encode(frame) })) {
    sentTimes.add(frame.length);
  }
});
microphone.addEventListener("lost", () => {
  notify("The microphone went away. Choose another in the settings, or plug it in again.", ["Try again", begin]);
  refresh();
});

// --- the connection

connection.addEventListener("state", ({ detail: { state, message } }) => {
  if (state === "open") {
    notify("");
    $("score").hidden = false;
    announce(wasOpen ? "Connected again." : "Connected.");
    wasOpen = true;
    if (!drawing) requestAnimationFrame(draw);
    drawing = true;
  } else if (state === "waiting") {
    const words = wasOpen
      ? "The connection is lost. This page keeps trying, and goes on in the same conversation."
      : "The server does not answer. This page keeps trying.";
    notify(message || words, ["Try now", () => connection.open()]);
  } else if (state === "off") {
    wasOpen = false;
  }
  outage = false;
  refresh();
});
const REFUSALS = {
  session_taken_over: "This conversation goes on elsewhere: in another tab, or on another device.",
  session_idle: "It was quiet for long, so the connection was closed. The conversation can go on.",
};
connection.addEventListener("refused", ({ detail: { code, message } }) => {
  microphone.stop();
  if (code === "invalid_api_key") {
    $("key-form").hidden = false;
    notify(connection.key ? message || "The server does not take this key." : "");
    connection.key = "";
    $("key").focus();
  } else {
    const words = REFUSALS[code] || message || "The server does not let this page in.";
    notify(words, [code in REFUSALS ? "Go on here" : "Try again", () => connection.open()]);
  }
  refresh();
});

dialogue.addEventListener("ready", ({ detail }) => {
  if (detail.recording) {
    $("privacy").textContent = "This server records the conversation: it keeps your voice and the words.";
  }
  if (detail.voices.length) settings.offerVoices(detail.voices);
  dialogue.configure(choices());
  if (waitingText !== null) dialogue.type(waitingText);
  waitingText = null;
});
let shownDefaults = false;
dialogue.addEventListener("session", ({ detail: session }) => {
  // The first that the server tells is its own; later ones are what the user has chosen.
  if (!shownDefaults) settings.showDefaults({ instructions: session.instructions });
  shownDefaults = true;
});
dialogue.addEventListener("problem", ({ detail: words }) => notify(words, ["Close", () => notify("")]));
dialogue.addEventListener("outage", ({ detail: lacking }) => {
  outage = lacking;
  announce(lacking ? "The server lost a part of itself and waits for it." : "The server is whole again.");
});
// MinMo's own words are not announced: they are heard, and a screen reader would speak over them.
dialogue.addEventListener("said", ({ detail: words }) => announce(`You said: ${words}`));
dialogue.addEventListener("change", refresh);

// --- settings

$("open-settings").addEventListener("click", () => {
  settings.listDevices();
  $("settings").showModal();
});
settings.addEventListener("change", async ({ detail: name }) => {
  if (name === "theme") {
    floor.refresh();
    curves.refresh();
  } else if (name === "speaker") {
    await speaker.choose(settings.get("speaker"));
  } else if (name === "microphone" || name === "echo") {
    if (microphone.on) await begin();
  } else {
    dialogue.choose(choices());
  }
});
navigator.mediaDevices?.addEventListener("devicechange", () => settings.listDevices());
$("speaker-row").hidden = !speaker.selectable;

// --- drawing

let drawn = 0;

function draw(now) {
  drawing = connection.state !== "off" || speaker.playing;
  if (!drawing) return;
  if (now - drawn >= (calm.matches ? CALM_DRAW_MS : DRAW_MS)) {
    drawn = now;
    const you = microphone.level();
    floor.hear(now, you, speaker.level());
    floor.draw(now);
    curves.draw(now);
    if (!calm.matches) $("talk").style.setProperty("--level", you.toFixed(2));
  }
  requestAnimationFrame(draw);
}

if (!speaker.available) {
  $("talk").disabled = true;
  notify(
    window.isSecureContext
      ? "This browser cannot play live audio from a page; a current Chrome, Edge, Firefox or Safari can. You can type below, and read the answers."
      : "Browsers let a page listen and speak only over HTTPS or from this machine. You can type below, and read the answers.",
  );
}
refresh();
