"use strict";
// Everything from the data is set as text or as a number, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const column = Object.fromEntries(data.columns.map((name, index) => [name, index]));
const rows = data.rows;
const get = (row, name) => row[column[name]];
const byId = (id) => document.getElementById(id);
const fields = { kind: byId("kind"), dataset: byId("dataset"), bucket: byId("bucket"), text: byId("text"), sort: byId("sort") };
const levelOf = new Map();
for (const one of data.findings) if (!levelOf.has(one.kind)) levelOf.set(one.kind, one.level);
let shown = [];
let current = 0;
let drawn = new Map();

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const size = (value) => (value ? `${value[0]}x${value[1]}` : "");
const shift = (row) => Math.hypot(get(row, "right") ?? 0, get(row, "down") ?? 0);
const searched = rows.map((row) =>
  [get(row, "name"), get(row, "reference_name") ?? "", ...get(row, "captions")].join("\n").toLowerCase());

// ---- pictures

function picture(row, prefix) {
  const file = get(row, `${prefix}thumbnail`), full = get(row, `${prefix}size`);
  if (!full) return make("div", "absent", "no reference");
  if (!file) return make("div", "absent", "no picture");
  const frame = make("div", "frame");
  frame.style.setProperty("--aspect", full[0] / full[1]);
  frame.append(image(file, get(row, `${prefix}name`)));
  const [left, top, width, height] = get(row, `${prefix}crop`);
  if (width < 0.999 || height < 0.999) {
    const box = make("div", "box");
    Object.assign(box.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * width}%`, height: `${100 * height}%` });
    frame.append(box);
  }
  return frame;
}

function image(file, name) {
  const element = make("img");
  element.loading = "lazy";
  element.decoding = "async";
  element.alt = name;
  element.src = "thumbnails/" + file;
  return element;
}

function differencePicture(row) {
  const files = [get(row, "reference_thumbnail"), get(row, "thumbnail")];
  if (!get(row, "reference_size")) return make("div", "absent", "");
  if (!files[0] || !files[1]) return make("div", "absent", "no picture");
  const [width, height] = get(row, "bucket"), [otherWidth, otherHeight] = get(row, "reference_bucket");
  const ratio = (width * otherHeight) / (height * otherWidth);
  if (Math.max(ratio, 1 / ratio) > 1.02) return make("div", "absent", "other shape: not compared");
  const frame = make("div", "frame difference");
  frame.style.setProperty("--aspect", width / height);
  for (const [file, crop] of [[files[0], get(row, "reference_crop")], [files[1], get(row, "crop")]]) {
    const element = image(file, "");
    Object.assign(element.style, {
      width: `${100 / crop[2]}%`, height: `${100 / crop[3]}%`,
      left: `${(-100 * crop[0]) / crop[2]}%`, top: `${(-100 * crop[1]) / crop[3]}%`,
    });
    frame.append(element);
  }
  return frame;
}

function cell(title, content) {
  const figure = make("figure", "cell"), stage = make("div", "stage");
  stage.append(content);
  figure.append(make("figcaption", "", title), stage);
  return figure;
}

function sized(title, row, prefix) {
  const full = size(get(row, `${prefix}size`)), bucket = size(get(row, `${prefix}bucket`));
  return full ? `${title} ${full}${bucket === full ? "" : ` → ${bucket}`}` : title;
}

function pictures(row) {
  return [
    cell(sized("reference", row, "reference_"), picture(row, "reference_")),
    cell(sized("target", row, ""), picture(row, "")),
    cell("difference, 3 times as bright", differencePicture(row)),
  ];
}

function numbers(row) {
  const parts = [`dataset ${get(row, "dataset")}`];
  if (get(row, "reference_dataset") !== null) parts.push(`reference ${get(row, "reference_dataset")}/${get(row, "reference_name")}`);
  return parts.join(" · ");
}

function measured(row) {
  const difference = get(row, "difference");
  if (difference === null) return get(row, "reference_size") ? "not compared" : "";
  const parts = [`difference ${difference.toFixed(difference < 1 ? 2 : 1)} %`, `${get(row, "changed").toFixed(0)} % of blocks changed`];
  const right = get(row, "right"), down = get(row, "down"), zoom = get(row, "zoom");
  if (Math.abs(right) >= 0.5) parts.push(`${Math.abs(right).toFixed(1)} px ${right > 0 ? "right" : "left"}`);
  if (Math.abs(down) >= 0.5) parts.push(`${Math.abs(down).toFixed(1)} px ${down > 0 ? "down" : "up"}`);
  if (Math.abs(zoom - 1) >= 0.002) parts.push(`zoom ${(100 * zoom).toFixed(1)} %`);
  return parts.join(" · ");
}

function facts(row) {
  const element = make("div", "facts");
  const name = make("div", "name", get(row, "name"));
  name.title = get(row, "name");
  element.append(name, make("div", "numbers", numbers(row)));
  if (measured(row)) element.append(make("div", "numbers", measured(row)));
  if (get(row, "kinds").length) {
    const badges = make("div", "badges");
    for (const index of get(row, "kinds")) {
      const { kind, title } = data.kinds[index];
      badges.append(make("span", `badge ${levelOf.get(kind) ?? "note"}`, title));
    }
    element.append(badges);
  }
  element.append(make("div", "caption", get(row, "captions").join("\n") || "(no caption)"));
  return element;
}

// ---- the list: only the rows in view exist

const rowHeight = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));

function draw() {
  const height = rowHeight(), top = byId("rows").getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(-top / height) - 3);
  const last = Math.min(shown.length, Math.ceil((window.innerHeight - top) / height) + 3);
  for (const [place, element] of drawn) {
    if (place < first || place >= last) {
      element.remove();
      drawn.delete(place);
    }
  }
  for (let place = first; place < last; place++) {
    if (drawn.has(place)) continue;
    const element = make("div", "row");
    element.id = `row-${place}`;
    element.setAttribute("role", "option");
    element.style.top = `${place * height}px`;
    element.append(...pictures(rows[shown[place]]), facts(rows[shown[place]]));
    element.addEventListener("click", () => { select(place); enlarge(); });
    byId("rows").append(element);
    drawn.set(place, element);
  }
  for (const [place, element] of drawn) {
    element.classList.toggle("current", place === current);
    element.setAttribute("aria-selected", place === current);
  }
  if (drawn.has(current)) byId("list").setAttribute("aria-activedescendant", `row-${current}`);
}

function redraw() {
  for (const element of drawn.values()) element.remove();
  drawn = new Map();
  byId("rows").style.height = `${shown.length * rowHeight()}px`;
  draw();
}

function select(place) {
  current = Math.max(0, Math.min(shown.length - 1, place));
  const height = rowHeight(), top = byId("rows").getBoundingClientRect().top + current * height;
  const sticky = getComputedStyle(byId("filters")).position === "sticky" ? byId("filters").offsetHeight : 0;
  if (top < sticky) window.scrollBy(0, top - sticky - 4);
  else if (top + height > window.innerHeight) window.scrollBy(0, top + height - window.innerHeight);
  draw();
}

// ---- filters, kept in the address

function options(select, values, all) {
  select.append(new Option(all, ""));
  for (const [value, text] of values) select.append(new Option(text, value));
}

function counted(name) {
  const counts = new Map();
  for (const row of rows) counts.set(name(row), (counts.get(name(row)) ?? 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1]);
}

const sortKeys = {
  "difference": (row) => get(row, "difference") ?? Infinity,
  "-difference": (row) => -(get(row, "difference") ?? -Infinity),
  "-shift": (row) => -shift(row),
  "-zoom": (row) => -Math.abs((get(row, "zoom") ?? 1) - 1),
  "-kinds": (row) => -get(row, "kinds").length,
};

function apply() {
  const kind = data.kinds.findIndex((one) => one.kind === fields.kind.value);
  const words = fields.text.value.toLowerCase();
  shown = [];
  rows.forEach((row, index) => {
    if (fields.kind.value === "any" ? !get(row, "kinds").length : fields.kind.value && !get(row, "kinds").includes(kind)) return;
    if (fields.dataset.value && get(row, "dataset") !== fields.dataset.value) return;
    if (fields.bucket.value && size(get(row, "bucket")) !== fields.bucket.value) return;
    if (words && !searched[index].includes(words)) return;
    shown.push(index);
  });
  const key = sortKeys[fields.sort.value];
  if (key) {
    const keys = new Map(shown.map((index) => [index, key(rows[index])]));
    shown.sort((one, other) => (keys.get(one) === keys.get(other) ? one - other : keys.get(one) < keys.get(other) ? -1 : 1));
  }
  current = 0;
  byId("shown").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  byId("empty").hidden = shown.length > 0;
  for (const button of byId("findings").querySelectorAll("button")) {
    const here = button.dataset.kind === fields.kind.value && (!fields.dataset.value || button.dataset.dataset === fields.dataset.value);
    button.setAttribute("aria-pressed", here);
  }
  redraw();
}

function changed() {
  const given = new URLSearchParams();
  for (const [name, field] of Object.entries(fields)) if (field.value) given.set(name, field.value);
  history.replaceState(null, "", given.size ? `#${given}` : location.pathname + location.search);
  apply();
}

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, field] of Object.entries(fields)) {
    field.value = given.get(name) ?? "";
    if (field.selectedIndex === -1) field.value = "";
  }
  apply();
}

// ---- one pair, enlarged

function enlarge() {
  const dialog = byId("large"), row = rows[shown[current]];
  if (!row) return;
  const big = make("div", "pictures"), steps = make("nav");
  big.append(...pictures(row));
  for (const [text, action] of [["← Previous", () => step(-1)], ["Next →", () => step(1)], ["Close", () => dialog.close()]]) {
    const button = make("button", "", text);
    button.type = "button";
    button.addEventListener("click", action);
    steps.append(button);
  }
  steps.append(make("span", "", `${current + 1} of ${shown.length}`));
  dialog.replaceChildren(big, facts(row), steps);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  select(current + by);
  enlarge();
}

// ---- start

function showFindings() {
  for (const finding of data.findings) {
    const button = make("button", finding.level), count = make("span", "count"), what = make("span", "what");
    button.type = "button";
    Object.assign(button.dataset, { kind: finding.kind, dataset: finding.dataset });
    count.append(make("b", "", finding.count.toLocaleString("en")), make("span", "", finding.level));
    const title = data.kinds.find((one) => one.kind === finding.kind).title;
    what.append(make("b", "", title), `${finding.dataset ? finding.dataset + ": " : ""}${finding.text}`);
    button.append(count, what);
    if (finding.fix) button.append(make("span", "fix", `fix: ${finding.fix}`));
    button.addEventListener("click", () => {
      const off = button.getAttribute("aria-pressed") === "true";
      fields.kind.value = off ? "" : finding.kind;
      fields.dataset.value = "";
      if (fields.kind.selectedIndex === -1) fields.kind.value = "";
      changed();
    });
    const item = make("li");
    item.append(button);
    byId("findings").append(item);
  }
  for (const one of data.not_checked) byId("not-checked").append(make("li", "", `not checked: ${one.kinds.join(", ")}; ${one.why}`));
}

function showFacts() {
  for (const [heading, lines] of Object.entries(data.facts)) {
    byId("facts").append(make("dt", "", heading), make("dd", "", lines.join("\n")));
  }
  byId("about").hidden = !Object.keys(data.facts).length;
  const pairs = rows.filter((row) => get(row, "reference_size")).length, found = rows.filter((row) => get(row, "kinds").length).length;
  byId("totals").textContent =
    `${pairs.toLocaleString("en")} pairs, ${(rows.length - pairs).toLocaleString("en")} images without a reference; ` +
    `${found.toLocaleString("en")} with a finding`;
  if (data.left_out) {
    byId("left-out").textContent = `${data.left_out.toLocaleString("en")} more pairs are not on this page; those with findings come first.`;
    byId("left-out").hidden = false;
  }
}

function keys(event) {
  const dialog = byId("large"), typing = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typing) { event.preventDefault(); fields.text.focus(); return; }
  if (event.key === "Escape" && event.target === fields.text) { byId("list").focus(); return; }
  if (typing) return;
  if (dialog.open) {
    const by = { ArrowRight: 1, ArrowDown: 1, j: 1, ArrowLeft: -1, ArrowUp: -1, k: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
    return;
  }
  if (event.target.matches("button, summary")) return;
  const page = Math.max(1, Math.floor(window.innerHeight / rowHeight()) - 1);
  const to = {
    ArrowDown: current + 1, j: current + 1, ArrowUp: current - 1, k: current - 1, PageDown: current + page,
    PageUp: current - page, Home: 0, End: shown.length - 1,
  }[event.key];
  if (to !== undefined) { event.preventDefault(); select(to); }
  else if (event.key === "Enter") { event.preventDefault(); enlarge(); }
}

const present = new Map();
for (const row of rows) for (const index of get(row, "kinds")) present.set(index, (present.get(index) ?? 0) + 1);
options(fields.kind, [["any", "any finding"], ...[...present].sort((one, other) => one[0] - other[0])
  .map(([index, count]) => [data.kinds[index].kind, `${data.kinds[index].title} (${count})`])], "all pairs");
options(fields.dataset, counted((row) => get(row, "dataset")).map(([value, count]) => [value, `${value} (${count})`]), "all");
options(fields.bucket, counted((row) => size(get(row, "bucket"))).map(([value, count]) => [value, `${value} (${count})`]), "all");
showFindings();
showFacts();
for (const field of Object.values(fields)) field.addEventListener(field === fields.text ? "input" : "change", changed);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("reset").addEventListener("click", () => {
  for (const field of Object.values(fields)) field.value = "";
  changed();
});
byId("boxes").addEventListener("change", (event) => document.body.classList.toggle("no-boxes", !event.target.checked));
document.addEventListener("keydown", keys);
window.addEventListener("hashchange", fromAddress);
window.addEventListener("scroll", draw, { passive: true });
window.addEventListener("resize", redraw);
fromAddress();
