"use strict";
(() => {
  const runs = new Map(JSON.parse(document.getElementById("data").textContent).map((run) => [run.name, run]));
  const form = document.getElementById("filter");
  const boxes = [...document.querySelectorAll(".pick input")];
  const KEYS = ["model", "environment", "verdict", "text"];
  const OWN = ["Started", "Finished", "Evidence"]; // no two runs share them
  let chosen = [];

  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  const filter = () => {
    const wanted = Object.fromEntries(KEYS.map((key) => [key, form.elements[key].value]));
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (each) =>
      (!wanted.model || each.dataset.model === wanted.model) &&
      (!wanted.environment || each.dataset.environments.split(" ").includes(wanted.environment));
    let count = 0;
    for (const row of document.querySelectorAll(".runs tbody")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        matches(row) &&
        (!wanted.verdict || row.dataset.verdict === wanted.verdict) &&
        words.every((word) => text.includes(word))
      );
      count += !row.hidden;
    }
    for (const plot of document.querySelectorAll("figure")) plot.hidden = !matches(plot);
    const lone = chosen.length === 1 ? "; one is chosen, choose another to compare" : "";
    document.getElementById("shown").textContent = `${count} of ${runs.size} runs${lone}`;
    const none = document.getElementById("none");
    if (none) none.hidden = count > 0;
  };

  const table = (caption, head, rows) => {
    const made = document.createElement("table");
    made.append(make("caption", caption));
    const top = made.createTHead().insertRow();
    for (const each of head) {
      const cell = make("th", "", { scope: "col" });
      cell.append(each);
      top.append(cell);
    }
    const body = made.createTBody();
    for (const [title, ...cells] of rows) {
      const row = body.insertRow();
      row.append(make("th", title, { scope: "row" }));
      for (const cell of cells) row.insertCell().append(cell);
      const [one, other] = cells.map((cell) => cell.textContent ?? cell);
      if (one !== other && !OWN.includes(title)) {
        row.className = "differs";
        row.cells[0].append(" ≠");
      }
    }
    return made;
  };

  const gate = (found) => {
    const cell = document.createElement("div");
    if (!found) {
      cell.textContent = "–";
      return cell;
    }
    const [, , outcome, verdicts] = found;
    cell.append(make("b", outcome.toUpperCase(), { class: outcome }));
    for (const [measured, bound, limit, reason] of verdicts) {
      const figures = [];
      if (measured !== "–") figures.push(measured);
      if (bound !== "–") figures.push(bound);
      if (limit !== "–") figures.push(`limit ${limit}`);
      if (figures.length) cell.append(make("div", figures.join(", ")));
      if (reason) cell.append(make("div", reason, { class: "quiet" }));
    }
    return cell;
  };

  const compare = () => {
    const pair = [...runs.values()].filter((run) => chosen.includes(run.name)).reverse(); // the older one first
    const place = document.getElementById("compared");
    place.replaceChildren();
    document.getElementById("compare").hidden = pair.length !== 2;
    for (const box of boxes) box.checked = chosen.includes(box.value);
    if (pair.length !== 2) return;
    const keys = (part) => [...new Set(pair.flatMap((run) => Object.keys(run[part])))];
    const head = (first) => [
      first,
      ...pair.map((run) => (run.page ? make("a", run.name, { href: run.page }) : document.createTextNode(run.name))),
    ];
    place.append(
      table("Run and build", head("Fact"), keys("facts").map((key) => [key, ...pair.map((run) => run.facts[key] || "–")])),
      table(
        "Gate by gate",
        head("Gate"),
        keys("gates").map((key) => {
          const [environment, title] = pair.map((run) => run.gates[key]).find(Boolean);
          const variant = /\[.*?-(\w+)\]$/.exec(key);
          const name = `${title}, ${environment}${variant ? ` (${variant[1]})` : ""}`;
          return [name, ...pair.map((run) => gate(run.gates[key]))];
        }),
      ),
    );
  };

  const save = () => {
    const state = new URLSearchParams();
    for (const key of KEYS) if (form.elements[key].value) state.set(key, form.elements[key].value);
    if (chosen.length) state.set("compare", chosen.join(","));
    history.replaceState(null, "", `#${String(state).replaceAll("%2F", "/").replaceAll("%2C", ",")}`);
  };

  const load = () => {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=")) return;
    const state = new URLSearchParams(hash);
    for (const key of KEYS) form.elements[key].value = state.get(key) ?? "";
    chosen = (state.get("compare") ?? "").split(",").filter((name) => runs.has(name)).slice(0, 2);
    filter();
    compare();
  };

  form.addEventListener("input", () => {
    filter();
    save();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const box of boxes) {
    box.addEventListener("change", () => {
      chosen = chosen.filter((name) => name !== box.value);
      if (box.checked) chosen = [...chosen.slice(-1), box.value];
      filter();
      compare();
      save();
      if (chosen.length === 2) document.getElementById("compare").scrollIntoView();
    });
  }
  document.getElementById("clear").addEventListener("click", () => {
    chosen = [];
    filter();
    compare();
    save();
  });
  window.addEventListener("hashchange", load);
  form.hidden = false;
  const how = document.getElementById("how");
  if (how) how.hidden = false;
  for (const each of document.querySelectorAll(".pick")) each.hidden = false;
  filter();
  load();
})();
