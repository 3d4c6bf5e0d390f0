// What the user has chosen, kept in this browser; and the devices there are to choose from.

const KEY = "minmo.settings";
const FIELDS = ["instructions", "voice", "manner", "written", "microphone", "speaker", "echo", "theme"];

/** Event: `change` (detail: the name of the setting). */
export class Settings extends EventTarget {
  #fields;

  constructor(document) {
    super();
    this.#fields = Object.fromEntries(FIELDS.map((name) => [name, document.getElementById(name)]));
    const kept = read();
    for (const [name, field] of Object.entries(this.#fields)) {
      if (name in kept) put(field, kept[name]);
      field.addEventListener("change", () => this.#changed(name));
    }
    this.#applyTheme();
  }

  /** The value of a setting. */
  get(name) {
    const field = this.#fields[name];
    return field.type === "checkbox" ? field.checked : field.value.trim();
  }

  /** Shows what the server does where nothing is chosen. */
  showDefaults({ instructions }) {
    this.#fields.instructions.placeholder = instructions ?? "";
  }

  /** Offers the server's voices; one that was chosen and is gone is chosen no more. */
  offerVoices(names) {
    const { voice } = this.#fields;
    if (voice.value && !names.includes(voice.value)) this.reset("voice");
    offer(voice, names.map((name) => [name, name]));
  }

  /** Lists the devices; their names are known once the microphone was allowed. */
  async listDevices() {
    const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    for (const [name, kind] of [["microphone", "audioinput"], ["speaker", "audiooutput"]]) {
      const known = devices.filter((device) => device.kind === kind && device.deviceId && device.label);
      const choices = known.filter(({ deviceId }) => deviceId !== "default");
      offer(this.#fields[name], choices.map((device) => [device.deviceId, device.label]));
    }
  }

  /** Goes back to the default. */
  reset(name) {
    this.#fields[name].value = "";
    this.#keep();
  }

  #changed(name) {
    this.#keep();
    if (name === "theme") this.#applyTheme();
    this.dispatchEvent(new CustomEvent("change", { detail: name }));
  }

  #keep() {
    const values = Object.fromEntries(FIELDS.map((name) => [name, this.get(name)]));
    try {
      localStorage.setItem(KEY, JSON.stringify(values));
    } catch {
      // Storage is off or full: the choice holds until the page is left.
    }
  }

  #applyTheme() {
    document.documentElement.dataset.theme = this.get("theme");
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

function put(field, value) {
  if (field.type === "checkbox") {
    field.checked = value;
    return;
  }
  // What was chosen stays chosen until the list of what there is has come.
  if (field instanceof HTMLSelectElement && ![...field.options].some((option) => option.value === value)) {
    field.add(new Option("As chosen before", value));
  }
  field.value = value;
}

function offer(select, choices) {
  const chosen = select.value;
  while (select.options.length > 1) select.remove(1);
  for (const [value, name] of choices) select.add(new Option(name, value));
  put(select, chosen);
}
