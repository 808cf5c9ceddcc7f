// Draws what the server sends: texts are set as text, never as HTML, since students chose their names.
"use strict";

const token = new URLSearchParams(location.search).get("token") || "";
const STATES = { trains: "▶ trains", waits: "… waits", done: "✓ done", error: "✗ error", silent: "? silent",
  left: "left", joined: "joined", invited: "invited", removed: "removed" };
const GONE = ["left", "joined", "invited", "removed"];
const SILENCE_MS = 8000; // the server speaks once a second
const AGAIN_MS = 3000;
const MANY = 12; // students; then rows are lower
const WIDTH = 200, HEIGHT = 40;
const at = (id) => document.getElementById(id);
let source = null, heard = Date.now(), lostSince = null;

function make(tag, text, ...classes) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes.filter(Boolean));
  return made;
}

function shape(tag, values) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(values)) made.setAttribute(name, value);
  return made;
}

function curve(student, top) {
  const drawn = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `training ${student.measure} of ${student.name}, now ${student.lately}` });
  drawn.append(shape("line", { class: "frame", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }));
  const last = student.points.length - 1, all = Math.max(student.steps, student.step, 1);
  const points = student.points.map((loss, i) => {
    const begin = i * student.per, end = i < last ? begin + student.per : student.step;
    return `${(WIDTH * (begin + end) / 2 / all).toFixed(1)},${(HEIGHT * (1 - loss / top)).toFixed(1)}`;
  });
  if (points.length === 1) points.push(points[0].replace(/^[^,]*/, (x) => Number(x) + 3)); // a point is seen too
  drawn.append(shape("polyline", { class: "curve", points: points.join(" ") }));
  return drawn;
}

function lossCell(student, tops) {
  const cell = make("td");
  if (student.points) {
    cell.append(curve(student, tops[student.measure]), make("span", student.lately.toFixed(2), "value"));
    if (student.measure !== "loss") cell.append(make("small", `${student.measure}, on a scale of its own`));
  } else {
    cell.append(make("small", student.measure || !student.step ? "–" : "stays on the device"));
  }
  return cell;
}

function stepCell(student) {
  const cell = make("td", student.steps ? `${student.step} of ${student.steps}` : student.step ? `${student.step}` : "–");
  if (student.steps) {
    const bar = make("progress");
    bar.max = student.steps;
    bar.value = student.step;
    bar.setAttribute("aria-label", `steps of ${student.name}`);
    cell.append(bar);
  }
  return cell;
}

function row(student, tops, controls) {
  const line = make("tr", undefined, GONE.includes(student.state) && "gone");
  const name = make("th", student.name);
  name.scope = "row";
  const state = make("td");
  state.append(make("span", STATES[student.state], "state", student.state));
  if (student.note) state.append(make("small", student.note));
  line.append(name, state, stepCell(student), lossCell(student, tops));
  line.append(make("td", student.mib.toFixed(1), "n"), make("td", student.refused, "n"));
  if (controls) {
    const cell = make("td");
    if (!student.removed) {
      const button = make("button", "Take off");
      button.setAttribute("aria-label", `Take ${student.name} off the list`);
      button.dataset.student = student.name;
      cell.append(button);
    }
    line.append(cell);
  }
  return line;
}

function scales(students) {
  const tops = {};
  for (const student of students)
    for (const value of student.points || [])
      tops[student.measure] = Math.max(tops[student.measure] || 1e-6, value);
  return tops;
}

function draw(seen) {
  if (!seen.students) return; // the server has not looked yet
  document.title = `${seen.title} · class board`;
  at("title").textContent = seen.title;
  at("of").textContent = `as of ${new Date(1000 * seen.at).toLocaleTimeString()}`;
  for (const state of ["trains", "waits", "done"]) at(state).textContent = seen.counts[state];
  at("rate").textContent = seen.rate.toFixed(1);
  const tops = scales(seen.students);
  at("scale").textContent = tops.loss ? `0 to ${tops.loss.toFixed(2)} nats · number: mean of the last 8 steps` : "";
  at("action").hidden = at("instructor").hidden = !seen.controls;
  document.body.classList.toggle("many", seen.students.length > MANY);
  const focused = document.activeElement && document.activeElement.dataset.student;
  at("students").replaceChildren(...seen.students.map((student) => row(student, tops, seen.controls)));
  if (focused) for (const button of document.querySelectorAll("button"))
    if (button.dataset.student === focused) button.focus();
  if (seen.controls) happened(seen);
}

function happened(seen) {
  at("strangers").textContent = `Refused devices that nobody knows: ${seen.strangers}`;
  at("events").replaceChildren(...seen.events.map((event) => {
    const who = event.student || (event.key ? `a device that nobody knows (key ${event.key} …)` : "the server");
    const when = new Date(event.at).toLocaleTimeString();
    return make("li", `${when}  ${who}: ${event.event}${event.why ? `, ${event.why}` : ""}`);
  }));
}

async function kick(student) {
  if (!confirm(`Take ${student} off the list? The session ends within seconds; a new invitation would bring them back.`)) return;
  try {
    const answer = await fetch("/kick", { method: "POST", body: JSON.stringify({ student }),
      headers: { Authorization: `Bearer ${token}` } });
    at("said").textContent = await answer.text();
  } catch {
    at("said").textContent = `${student} was not taken off: the server did not answer.`;
  }
}

function told(lost) {
  const line = at("connection");
  if (lost) lostSince = lostSince || new Date();
  else lostSince = null;
  line.classList.toggle("lost", lost);
  const since = lost && `connection lost since ${lostSince.toLocaleTimeString()}: trying again`;
  const text = lost ? since : "live";
  if (line.textContent !== text) line.textContent = text; // said once by a screen reader
}

function listen() {
  if (source) source.close();
  source = new EventSource(`/events?token=${encodeURIComponent(token)}`);
  source.onmessage = (message) => {
    heard = Date.now();
    told(false);
    draw(JSON.parse(message.data));
  };
  source.onerror = () => told(true);
}

at("students").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) kick(button.dataset.student);
});
setInterval(() => { // also where a cable was pulled, which no error tells, and where the server said no
  const silent = Date.now() - heard > SILENCE_MS;
  if (silent) told(true);
  if (silent || source.readyState === EventSource.CLOSED) listen();
}, AGAIN_MS);
listen();
