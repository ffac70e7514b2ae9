// Hands files in, follows their jobs, shows what came of them. Paths are relative to the page: a proxy may have put the
// service below its own root. What the service says is put in as text, never as markup.

const FINAL = new Set(["succeeded", "failed", "cancelled", "expired"]);
const VIDEO_NAMES = /\.(mp4|m4v|mov|mkv|webm|avi|mpe?g|m2?ts|mxf|ogv|flv|wmv|3gp|y4m|dv)$/i;
const SHOWABLE = /^(image\/(png|jpeg|webp|avif|bmp)|video\/(mp4|webm|quicktime))$/;
const MOST_SHOWN_BYTES = 512 * 2 ** 20; // of a result; more is better fetched than held by a page
const REMEMBERED = "quietframe-jobs"; // of this tab, so that reloading it loses none
const RETRY_MS = 2000;
const MOST_APART_S = 0.03; // of two videos that are compared: about a frame

const at = (id) => document.getElementById(id);
const shown = new Set(); // ids of jobs that have a card
let uploads = Promise.resolve(); // one after the other: together each would take as long as all

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the service answered ${status}`);
    this.status = status;
    this.code = problem.code;
    this.retryable = Boolean(problem.retryable);
  }
}

// --- talking to the service ---

function credentials() {
  const key = at("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...options.headers, ...credentials() } });
  if (answer.ok) return answer;
  throw refused(answer.status, await answer.text());
}

function refused(status, body) {
  let problem = {};
  try { problem = JSON.parse(body); } catch { /* a proxy's own page */ }
  const error = new Refused(status, problem);
  if (status === 401) askForKey();
  return error;
}

function askForKey() {
  if (at("key-field").hidden) {
    at("key-field").hidden = false;
    at("key").focus();
  }
}

// The one thing that fetch cannot do is tell how much of a body has been sent.
function send(kind, form, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `jobs/${kind}`);
    for (const [name, value] of Object.entries(credentials())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onerror = () => reject(new Error("the service cannot be reached"));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onload = () =>
      request.status === 202
        ? resolve(JSON.parse(request.responseText))
        : reject(refused(request.status, request.responseText));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

// EventSource can send no key, so the stream is read here.
async function* eventsOf(id, seen, signal) {
  const answer = await ask(`jobs/${id}/events`, { headers: seen ? { "Last-Event-ID": seen } : {}, signal });
  if (answer.status === 204) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text = (text + value).replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(
        block.split("\n").filter((line) => /^(id|event|data):/.test(line)).map((line) => line.split(/: ?(.*)/s, 2)),
      );
      if (fields.data) yield { id: fields.id, event: fields.event, ...JSON.parse(fields.data) };
    }
  }
}

// --- a job and its card ---

class Card {
  constructor(name, file) {
    const item = at("job").content.cloneNode(true).firstElementChild;
    at("jobs").prepend(item);
    this.item = item;
    this.article = item.querySelector("article");
    this.file = file;
    this.id = null;
    this.gone = new AbortController();
    this.urls = []; // of bytes that are held for this card
    item.querySelector("h2").textContent = name;
    item.querySelector(".stop").addEventListener("click", () => this.stop());
  }

  part(selector) {
    return this.article.querySelector(selector);
  }

  say(text, share) {
    this.part(".state").textContent = text;
    const bar = this.part("progress");
    bar.hidden = share === undefined;
    if (share === null) bar.removeAttribute("value");
    else if (share !== undefined) bar.value = share;
  }

  fail(error) {
    if (error.name === "AbortError") return this.say("Cancelled");
    this.article.classList.add("failed");
    this.say(sentence(error.message));
    this.part(".stop").textContent = "Remove";
    this.over = true;
  }

  async stop() {
    if (this.over) {
      forget(this.id);
      this.gone.abort();
      this.item.remove();
      this.urls.forEach((url) => URL.revokeObjectURL(url));
      if (this.id) await ask(`jobs/${this.id}`, { method: "DELETE" }).catch(() => {});
    } else if (this.id) {
      this.say("Cancelling", null);
      try {
        const answer = await ask(`jobs/${this.id}`, { method: "DELETE" });
        if (answer.status === 204) this.end(); // it was over in that very moment, and is removed
      } catch (error) {
        this.fail(error);
      }
    } else {
      this.end();
    }
  }

  end() {
    forget(this.id);
    this.over = true;
    this.gone.abort();
    this.part(".stop").textContent = "Remove";
    this.say("Cancelled");
  }

  async handIn(form, kind) {
    const turn = uploads.then(async () => {
      if (this.over) return null;
      this.say("Sending", 0);
      const told = (share) => this.say(share < 1 ? "Sending" : "Looking at it", share < 1 ? share : null);
      try {
        return await send(kind, form, told, this.gone.signal);
      } catch (error) {
        // What a file is, its bytes tell and not its name.
        if (error.status !== 415 || kind === "video" || !/video/.test(error.message)) throw error;
        form.set("format", at("video-format").value);
        return send("video", form, told, this.gone.signal);
      }
    });
    uploads = turn.catch(() => {});
    const job = await turn;
    if (job) {
      remember(job.id, this.part("h2").textContent);
      await this.follow(job);
    }
  }

  async follow(job) {
    this.id = job.id;
    shown.add(job.id);
    let seen = null;
    while (!FINAL.has(job.state)) {
      this.tell(job);
      try {
        for await (const event of eventsOf(job.id, seen, this.gone.signal)) {
          seen = event.id ?? seen;
          if (event.event === "state") job.state = event.state;
          if (event.event === "progress") job.progress = event;
          this.tell(job);
          if (event.event === "preview") await this.show("preview", "image/jpeg", null);
        }
        job = await (await ask(`jobs/${job.id}`, { signal: this.gone.signal })).json();
      } catch (error) {
        if (error instanceof Refused && !error.retryable) throw error;
        if (error.name === "AbortError") throw error;
        this.say("The service cannot be reached; trying again", null);
      }
      if (!FINAL.has(job.state)) await new Promise((wake) => setTimeout(wake, RETRY_MS));
    }
    await this.finish(job);
  }

  tell(job) {
    const { done, total, unit, rate, eta_seconds: left } = job.progress ?? {};
    if (job.state === "queued") this.say("Waiting for a worker", null);
    else if (job.state === "cancelling") this.say("Cancelling", null);
    else if (job.state === "running" && total) {
      const pace = rate && unit === "frames" ? `, ${rate.toFixed(1)} a second` : "";
      this.say(`${done} of ${total} ${unit}${pace}${left ? `, ${duration(left)} left` : ""}`, done / total);
    } else if (job.state === "running") this.say(done ? `${done} ${unit}` : "At work", null);
  }

  async finish(job) {
    this.over = true;
    this.part(".stop").textContent = "Remove";
    if (job.state !== "succeeded") {
      this.article.classList.toggle("failed", job.state === "failed");
      this.say(job.error ? sentence(job.error.detail) : sentence(job.state));
      return;
    }
    const took = Date.parse(job.finished_at) - Date.parse(job.started_at);
    this.say(`Done in ${duration(took / 1000)} by ${job.model} on ${job.backend} (${job.precision})`);
    this.article.classList.add("succeeded");
    this.figures(job);
    const told = [...job.notes, ...job.input.lost.map((one) => `Not kept: ${one}`)];
    list(this.part(".notes"), told.map((one) => element("li", sentence(one))));
    const { content_type: type, bytes } = job.result;
    this.offer(`jobs/${job.id}/result`, bytes);
    if (SHOWABLE.test(type) && bytes <= MOST_SHOWN_BYTES) await this.show("result", type, this.file);
    else this.say(`${this.part(".state").textContent}. ${SHOWABLE.test(type) ? "It is too large" : `No browser shows ${type}`}: download it`);
  }

  figures(job) {
    const m = job.metrics ?? {};
    const rows = [
      ["Noise taken out", m.sigma_estimate, (x) => `${x.toFixed(1)} of 255`],
      ["Noise before", m.input_noise_estimate?.sigma, (x) => mean(x).toFixed(1)],
      ["Noise after", m.output_noise_estimate?.sigma, (x) => mean(x).toFixed(1)],
      ["PSNR", m.psnr_db, (x) => `${x.toFixed(2)} dB`],
      ["PSNR before", m.input_psnr_db, (x) => `${x.toFixed(2)} dB`],
      ["SSIM", m.ssim, (x) => x.toFixed(4)],
      ["PSNR, an estimate", m.psnr_estimate_db, (x) => `${x.toFixed(1)} ± ${(m.psnr_estimate_error_db ?? 0).toFixed(1)} dB`],
      ["Size", job.input.width, (x) => `${x} × ${job.input.height}`],
      ["Bytes", job.result.bytes, (x) => `${size(job.input.bytes)} → ${size(x)}`],
    ];
    const known = rows.filter(([, value]) => value !== null && value !== undefined);
    list(this.part("dl"), known.map(([name, value, form]) => {
      const row = element("div");
      row.append(element("dt", name), element("dd", form(value)));
      return row;
    }));
  }

  offer(path, bytes) {
    const link = this.part(".fetch");
    link.href = path;
    link.textContent = `Download (${size(bytes)})`;
    link.hidden = false;
    // A plain link sends no key; and what the page holds anyhow need not be sent twice.
    link.addEventListener("click", async (click) => {
      if (link.href.startsWith("blob:") || !credentials().Authorization) return;
      click.preventDefault();
      try {
        const answer = await ask(`${path}?redirect=false`);
        this.hold(await answer.blob(), nameIn(answer));
        link.click();
      } catch (error) {
        this.say(sentence(error.message));
      }
    });
  }

  // What came of it, and over it what went in, where the browser knows that kind of file.
  async show(what, type, before) {
    let answer;
    try {
      // A bucket is another host, which this page may not talk to.
      answer = await ask(`jobs/${this.id}/${what}?redirect=false`, { signal: this.gone.signal });
    } catch (error) {
      if (what === "result") this.fail(error);
      return;
    }
    const bytes = await answer.blob();
    const after = this.view(bytes, type);
    if (what === "result") this.hold(bytes, nameIn(answer));
    const stage = this.part(".stage");
    if (!(await ready(after))) return;
    stage.replaceChildren(after);
    stage.classList.remove("both");
    this.part(".compare").hidden = false;
    const knob = this.part(".knob");
    knob.hidden = true;
    if (!before) return;
    const source = this.view(before, type);
    source.classList.add("before");
    if (!(await ready(source))) return;
    stage.append(source);
    stage.classList.add("both");
    knob.hidden = false;
    const slide = knob.querySelector("input");
    slide.oninput = () => stage.style.setProperty("--cut", `${slide.value}%`);
    slide.oninput();
    if (type.startsWith("video/")) together(after, source, this.part(".player"));
  }

  view(bytes, type) {
    const made = element(type.startsWith("video/") ? "video" : "img");
    made.src = this.url(bytes);
    if (made.tagName === "VIDEO") Object.assign(made, { controls: true, loop: true, playsInline: true });
    else made.alt = "";
    return made;
  }

  hold(bytes, name) {
    const link = this.part(".fetch");
    link.href = this.url(bytes);
    link.download = name;
  }

  url(bytes) {
    const url = URL.createObjectURL(bytes);
    this.urls.push(url);
    return url;
  }
}

// --- small things ---

function ready(seen) {
  return new Promise((resolve) => {
    seen.addEventListener(seen.tagName === "VIDEO" ? "loadeddata" : "load", () => resolve(true));
    seen.addEventListener("error", () => resolve(false));
  });
}

// Two videos that run as one: the controls of either would lie below the other.
function together(leader, follower, player) {
  const [button, position] = player.children;
  player.hidden = leader.controls = follower.controls = false;
  follower.muted = true;
  const place = () => {
    if (Math.abs(follower.currentTime - leader.currentTime) > MOST_APART_S) follower.currentTime = leader.currentTime;
    position.value = leader.currentTime / (leader.duration || 1);
  };
  button.onclick = () => (leader.paused ? leader.play() : leader.pause());
  position.oninput = () => { leader.currentTime = position.value * (leader.duration || 0); };
  leader.addEventListener("play", () => { button.textContent = "Pause"; follower.play().catch(() => {}); });
  leader.addEventListener("pause", () => { button.textContent = "Play"; follower.pause(); place(); });
  for (const event of ["seeking", "seeked", "timeupdate"]) leader.addEventListener(event, place);
}

function nameIn(answer) {
  const told = answer.headers.get("Content-Disposition") ?? "";
  const exact = /filename\*=UTF-8''([^;]+)/.exec(told);
  return exact ? decodeURIComponent(exact[1]) : (/filename="([^"]*)"/.exec(told)?.[1] ?? "result");
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function list(parent, children) {
  parent.replaceChildren(...children);
  parent.hidden = !children.length;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

function remembered() {
  try { return JSON.parse(sessionStorage.getItem(REMEMBERED)) ?? []; } catch { return []; }
}

function remember(id, name) {
  sessionStorage.setItem(REMEMBERED, JSON.stringify([...remembered(), { id, name }].slice(-50)));
}

function forget(id) {
  sessionStorage.setItem(REMEMBERED, JSON.stringify(remembered().filter((one) => one.id !== id)));
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

// --- the form ---

function formFor(file, kind) {
  const form = new FormData();
  form.set("model", at("model").value);
  form.set("strength", at("strength").value);
  form.set("ensemble", at("ensemble").value);
  form.set("sigma", at("sigma").value);
  form.set("format", at(`${kind}-format`).value);
  if (at("estimate").checked && kind === "image") form.set("estimate", "true"); // videos have one where it costs little
  if (at("reference").files.length) form.set("reference", at("reference").files[0]);
  form.set("file", file); // last, so that what is wrong with the rest is told before it is sent
  return form;
}

function take(files) {
  trouble("");
  if (at("reference").files.length && files.length > 1) {
    trouble("A reference belongs to one file; these are several.");
    return;
  }
  for (const file of files) {
    const kind = file.type.startsWith("video/") || VIDEO_NAMES.test(file.name) ? "video" : "image";
    const card = new Card(file.name, file);
    card.say("Waiting to be sent", null);
    card.handIn(formFor(file, kind), kind).catch((error) => card.fail(error));
  }
}

async function listModels() {
  const { models } = await (await ask("models")).json();
  const chosen = at("model").value;
  const groups = ["image", "video"].map((kind) => {
    const group = document.createElement("optgroup");
    group.label = kind === "image" ? "Images and video" : "Video";
    for (const model of models.filter((one) => one.kind === kind)) {
      const option = element("option", model.name);
      option.value = model.name;
      option.title = model.title;
      group.append(option);
    }
    return group;
  });
  at("model").replaceChildren(at("model").firstElementChild, ...groups);
  at("model").value = chosen;
}

async function takeUp() {
  for (const { id, name } of remembered().filter((one) => !shown.has(one.id))) {
    try {
      const job = await (await ask(`jobs/${id}`)).json();
      const card = new Card(name, null);
      card.follow(job).catch((error) => card.fail(error));
    } catch (error) {
      if (error.status === 404) forget(id);
    }
  }
}

async function begin() {
  try {
    await listModels();
    trouble("");
    await takeUp();
  } catch (error) {
    trouble(sentence(error.message));
  }
}

at("files").addEventListener("change", () => { take([...at("files").files]); at("files").value = ""; });
at("strength").addEventListener("input", () => {
  at("strength-told").textContent = `${Math.round(100 * at("strength").value)} %`;
});
at("key").addEventListener("change", begin);
at("ask").addEventListener("submit", (event) => event.preventDefault());
for (const event of ["dragover", "dragenter"]) {
  document.addEventListener(event, (drag) => { drag.preventDefault(); at("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (drag) => drag.relatedTarget || at("drop").classList.remove("over"));
document.addEventListener("drop", (drag) => {
  drag.preventDefault();
  at("drop").classList.remove("over");
  take([...drag.dataTransfer.files]);
});
document.addEventListener("paste", (paste) => paste.clipboardData.files.length && take([...paste.clipboardData.files]));

begin();
