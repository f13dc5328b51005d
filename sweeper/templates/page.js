// Figures, filters, sorting and copying of a run's page. Everything is drawn from #page-data; names in it are the
// user's: they enter the page by textContent, and plotly, which reads a little markup in texts, through `safe`.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const GROUPS = { teacher: "teacher", student: "student", loss: "loss", synthetic_ratio: "synthetic images" };
  const FIFTHS = { light: ["#b4c9e4", "#86a8cf", "#5c86b8", "#315f97", "#0b2f63"],
                   dark: ["#2f4468", "#4a6a97", "#6f93c0", "#9dbbe0", "#e3eefb"] };
  const wanted = {}; // what is filtered for, by group
  let chosen = null; // place of the trial that was clicked

  const make = (tag, text = "", attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const safe = (text) => String(text).replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
  const shorten = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  const digits = (value, count = 4) => Number(value.toPrecision(count)).toString();
  const shown = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? digits(value) : String(value));
  const valueOf = (trial, group) => (group === "synthetic_ratio" ? `${trial[group]}x` : String(trial[group]));
  const fits = (trial) => Object.entries(wanted).every(([group, value]) => valueOf(trial, group) === value);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const isNarrow = () => matchMedia("(max-width: 40rem)").matches;

  // Texts

  const named = (row) => [row.teacher === "none" ? "no teacher" : `teacher ${row.teacher}`, row.student, row.loss,
                          `${row.synthetic_ratio}x synthetic`];
  const hoverOfTrial = (trial) => {
    const leaves = data.leaves.map((leaf, i) => [leaf.name, trial.leaves[i]]).filter(([, value]) => value !== null);
    const lines = [`<b>trial ${trial.trial}</b>, ${trial.state}, ${trial.epochs} epochs`, safe(named(trial).join(", ")),
                   `${trial.accuracy.toFixed(3)} on validation, ${digits(trial.cost, 3)} ${data.unit}`,
                   ...leaves.map(([name, value]) => `${safe(name)}: ${safe(shorten(shown(value), 60))}`)];
    return lines.join("<br>");
  };
  const hoverOfFinal = (row) => {
    const title = row.role === "front" ? `row ${row.rank}` : safe(row.role);
    const test = row.test === null ? "" : `${row.test.toFixed(3)}${row.std === null ? "" : " ± " + row.std.toFixed(3)} on test, `;
    return [`<b>${title}</b>, trial ${row.trial}, ${row.seeds} seeds`, safe(named(row).join(", ")),
            `${test}${row.accuracy.toFixed(3)} on validation, ${digits(row.cost, 3)} ${data.unit}`].join("<br>");
  };

  // Figures

  const plot = (id, traces, layout) => {
    const box = document.getElementById(id);
    const ink = style("--ink"), line = style("--line"), isCoarse = matchMedia("(pointer: coarse)").matches; // a finger scrolls
    const axis = { ticklabeloverflow: "allow", gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, automargin: true };
    const full = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      hoverlabel: { align: "left", bgcolor: style("--block"), bordercolor: ink, font: { color: ink, size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--quiet"), activecolor: ink },
      hovermode: "closest", dragmode: isCoarse ? false : "zoom", margin: { l: 55, r: 15, t: 40, b: 50 }, ...layout,
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
    const isNew = !box.dataset.drawn;
    Plotly.react(box, traces, full, { responsive: true, displaylogo: false, displayModeBar: isCoarse ? false : "hover",
                                      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
    if (isNew) {
      box.dataset.drawn = "yes";
      box.on("plotly_click", (event) => {
        const place = event.points[0].customdata;
        if (place !== null && place !== undefined) choose(place);
      });
    }
  };

  const joined = (curves) => ({ // one trace of many lines: a gap between them
    x: curves.flatMap((curve) => [...curve.cost, null]), y: curves.flatMap((curve) => [...curve.accuracy, null]),
  });

  const bars = (rows, more) => ({
    type: "scatter", mode: "markers", x: rows.map((r) => r.cost), y: rows.map((r) => r.test),
    error_y: { type: "data", array: rows.map((r) => r.std || 0), visible: true, thickness: 1.5, width: 5, color: style("--ink") },
    text: rows.map(hoverOfFinal), hovertemplate: "%{text}<extra></extra>", customdata: rows.map((r) => r.place), ...more,
  });

  const ticksBetween = (costs) => { // round figures on an axis in logs; where it spans little, even steps
    const low = Math.min(...costs), high = Math.max(...costs);
    if (high > 4 * low) {
      const steps = isNarrow() && high > 50 * low ? [1] : [1, 2, 5];
      return [...Array(17)].flatMap((_, power) => steps.map((step) => Number(`${step}e${power - 8}`)));
    }
    const rough = (high - low || high) / 4, power = 10 ** Math.floor(Math.log10(rough)), step = power * ([1, 2, 5].find((by) => by * power >= rough) ?? 10);
    return [...Array(14)].map((_, i) => Number(((Math.floor(low / step) - 2 + i) * step).toPrecision(6))).filter((value) => value > 0);
  };

  const drawFront = () => {
    const ink = style("--ink"), traces = [];
    for (const look of data.looks) {
      const isOwn = (trial) => trial.teacher === look.teacher;
      const name = safe(look.teacher === "none" ? "no teacher" : `teacher ${shorten(look.teacher, 30)}`);
      const curves = data.curves.filter((c) => isOwn(data.trials[c.place]) && fits(data.trials[c.place]));
      const group = { legendgroup: look.teacher, name };
      traces.push({ type: "scatter", mode: "lines", ...joined(curves), ...group, hoverinfo: "skip", showlegend: false,
                    line: { color: look.colour, width: 1 }, opacity: 0.3 });
      const own = data.trials.map((trial, place) => [trial, place]).filter(([trial]) => isOwn(trial));
      if (!own.length) continue;
      const isStroke = look.symbol.endsWith("-thin");
      traces.push({
        type: "scatter", mode: "markers", ...group, x: own.map(([t]) => t.cost), y: own.map(([t]) => t.accuracy),
        text: own.map(([t]) => hoverOfTrial(t)), hovertemplate: "%{text}<extra></extra>", customdata: own.map(([, place]) => place),
        marker: { symbol: look.symbol, color: look.colour, size: own.map(([, place]) => (place === chosen ? 15 : 8)),
                  opacity: own.map(([t]) => (fits(t) ? 0.85 : 0.08)), line: { color: isStroke ? look.colour : ink, width: isStroke ? 2 : 0.6 } },
      });
    }
    const rows = [...data.front].sort((a, b) => a.cost - b.cost), tested = data.front.filter((r) => r.test !== null);
    const stairs = rows.filter((r, i) => rows.slice(0, i).every((other) => other.accuracy < r.accuracy));
    traces.push({ type: "scatter", mode: "lines", x: stairs.map((r) => r.cost), y: stairs.map((r) => r.accuracy), name: "front",
                  line: { color: ink, width: 1.6, shape: "hv" }, hoverinfo: "skip", showlegend: false, legendgroup: "front" });
    traces.push({ type: "scatter", mode: "markers", x: rows.map((r) => r.cost), y: rows.map((r) => r.accuracy), name: "front, validation",
                  legendgroup: "front", text: rows.map(hoverOfFinal), hovertemplate: "%{text}<extra></extra>", customdata: rows.map((r) => r.place),
                  marker: { symbol: "circle", size: 12, color: style("--paper"), line: { color: ink, width: 2 } } });
    traces.push(bars(tested, { name: "front, test", marker: { symbol: "diamond", size: 9, color: ink } }));
    const arms = data.arms.filter((r) => r.test !== null);
    const costs = [...data.trials, ...data.front, ...data.arms].map((row) => row.cost), dearest = Math.max(...costs);
    if (arms.length) {
      traces.push(bars(arms, { name: "arms, test", mode: "markers+text", cliponaxis: false,
                               textposition: arms.map((r) => (r.cost > 0.6 * dearest ? "bottom left" : "bottom right")),
                               hovertext: arms.map(hoverOfFinal), text: arms.map((r) => safe(r.role)), hovertemplate: "%{hovertext}<extra></extra>",
                               textfont: { size: 11 }, marker: { symbol: "star", size: 13, color: style("--paper"), line: { color: ink, width: 1.5 } } }));
    }
    const ticks = ticksBetween(costs);
    const tops = [...[...data.trials, ...data.front].map((t) => t.accuracy), ...[...tested, ...arms].map((r) => r.test + (r.std || 0))];
    const top = Math.max(...tops, data.floor + 0.01), room = top - data.floor;
    plot("plot-front", traces, {
      xaxis: { type: "log", title: { text: `cost from nothing, ${safe(data.unit)} (log scale)` }, tickvals: ticks, ticktext: ticks.map((value) => digits(value)) },
      yaxis: { title: { text: "accuracy" }, range: [data.floor - 0.05 * room, top + 0.06 * room] },
      legend: { orientation: "h", y: -0.22, yanchor: "top" }, margin: { l: 55, r: 15, t: 40, b: 60 },
    });
  };

  const scale = (values, isLog) => { // to [0, 1], with what stands at the ends of the axis; names take even places
    const known = values.filter((value) => value !== null && value !== undefined);
    if (known.every((value) => typeof value === "number")) {
      const low = Math.min(...known), high = Math.max(...known), by = isLog ? Math.log : (value) => value;
      const width = by(high) - by(low) || 1;
      return { at: (value) => (typeof value === "number" ? (by(value) - by(low)) / width : null),
               ticks: [[0, digits(low, 3)], [1, digits(high, 3)]] };
    }
    const names = [...new Set(known.map(String))].sort();
    const place = (name) => (names.length > 1 ? names.indexOf(name) / (names.length - 1) : 0.5);
    return { at: (value) => (value === null || value === undefined ? null : place(String(value))),
             ticks: (names.length <= 8 ? names : [names[0], names.at(-1)]).map((name) => [place(name), shorten(name, 16)]) };
  };

  const drawParallel = () => {
    const costs = data.trials.map((t) => t.cost);
    const axes = [
      ...data.leaves.map((leaf, i) => ({ name: leaf.name, values: data.trials.map((t) => t.leaves[i]), isLog: leaf.isLog })),
      { name: `cost, ${data.unit}`, values: costs, isLog: Math.max(...costs) / Math.min(...costs) > 5 },
      { name: "accuracy", values: data.trials.map((t) => t.accuracy), isLog: false },
    ].map((axis) => ({ ...axis, scale: scale(axis.values, axis.isLog) }));
    const ranked = data.trials.map((t, place) => place).sort((a, b) => data.trials[a].accuracy - data.trials[b].accuracy);
    const colours = FIFTHS[isDark() ? "dark" : "light"];
    const traces = colours.map((colour, fifth) => {
      const own = ranked.filter((place, i) => Math.floor((5 * i) / ranked.length) === fifth && fits(data.trials[place]));
      const trace = { x: [], y: [], customdata: [], text: [] };
      for (const place of own) {
        axes.forEach((axis, i) => {
          const at = axis.scale.at(axis.values[place]);
          if (at === null) return; // not in play: the line goes on to the next axis
          trace.x.push(i); trace.y.push(at); trace.customdata.push(place); trace.text.push(hoverOfTrial(data.trials[place]));
        });
        for (const list of Object.values(trace)) list.push(null);
      }
      return { ...trace, type: "scatter", mode: "lines", line: { color: colour, width: 1.4 }, hovertemplate: "%{text}<extra></extra>",
               name: ["least accurate fifth", "second", "third", "fourth", "most accurate fifth"][fifth] };
    });
    const ticks = axes.flatMap((axis, i) => axis.scale.ticks.map(([at, text]) => ({
      x: i, y: at, text: safe(text), showarrow: false, xanchor: i ? "right" : "left", yanchor: at > 0.5 ? "bottom" : "top",
      font: { size: 11 }, bgcolor: style("--paper"), opacity: 0.9 })));
    plot("plot-parallel", traces, {
      xaxis: { tickvals: axes.map((_, i) => i), ticktext: axes.map((axis) => safe(shorten(axis.name, 24))), tickangle: -25, showgrid: true,
               gridcolor: style("--quiet"), range: [-0.15, axes.length - 0.85], zeroline: false },
      yaxis: { visible: false, range: [-0.1, 1.1] }, annotations: ticks, legend: { orientation: "h", y: 1.08, yanchor: "bottom" },
      margin: { l: 60, r: 30, t: 60, b: 90 },
    });
  };

  const drawSlices = () => {
    const box = document.getElementById("slices");
    for (const [group, title] of Object.entries(GROUPS)) {
      const id = `plot-${group}`;
      if (!document.getElementById(id)) {
        box.append(make("div", "", { id, class: "plot low", role: "group", "aria-label": `Accuracy of the trials by ${title}. The same is in a table below.` }));
      }
      const trials = data.trials.map((trial, place) => [trial, place]).filter(([trial]) => fits(trial));
      const values = [...new Set(data.trials.map((trial) => trial[group]))].sort((a, b) => (a > b) - (a < b)).map((v) => valueOf({ [group]: v }, group));
      const traces = values.map((value, i) => {
        const own = trials.filter(([trial]) => valueOf(trial, group) === value);
        return { type: "box", name: safe(shorten(value, 22)), x0: i, y: own.map(([t]) => t.accuracy), text: own.map(([t]) => hoverOfTrial(t)), customdata: own.map(([, place]) => place),
                 boxpoints: "all", jitter: 0.5, pointpos: 0, hoveron: "points", hovertemplate: "%{text}<extra></extra>", showlegend: false,
                 marker: { color: style("--mark"), size: 6, opacity: 0.7 }, line: { color: style("--ink"), width: 1 }, fillcolor: "rgba(0,0,0,0)" };
      });
      plot(id, traces, { title: { text: `by ${title}`, font: { size: 14 } }, margin: { l: 50, r: 10, t: 40, b: 60 },
                         xaxis: { tickvals: values.map((_, i) => i), ticktext: values.map((v) => safe(shorten(v, 22))) },
                         yaxis: { title: { text: "accuracy, validation" } } });
    }
  };

  const drawProgress = () => {
    if (!document.getElementById("plot-progress")) return;
    const { unit, spent, hypervolume } = data.progress, shared = spent[0], quiet = style("--quiet");
    plot("plot-progress", [
      { type: "scatter", mode: "lines", x: spent, y: hypervolume, line: { color: style("--mark"), width: 2, shape: "hv" }, showlegend: false,
        hovertemplate: `%{y:.3f} after %{x:.3g} ${safe(unit)}<extra></extra>` },
    ], {
      xaxis: { title: { text: `device time spent by the search, ${safe(unit)}` }, range: [0, spent.at(-1) || 1] },
      yaxis: { title: { text: "hypervolume of the front" }, range: [0, Math.max(...hypervolume) * 1.15 || 1] },
      shapes: shared ? [{ type: "rect", x0: 0, x1: shared, y0: 0, y1: 1, yref: "paper", fillcolor: style("--block"), line: { width: 0 }, layer: "below" }] : [],
      annotations: shared ? [{ x: shared, y: 1, yref: "paper", xanchor: shared < 0.25 * spent.at(-1) ? "left" : "right", yanchor: "top", text: "shared artifacts",
                               showarrow: false, font: { size: 11, color: quiet } }] : [],
    });
  };

  const drawRungs = () => {
    const box = document.getElementById("plot-rungs");
    if (!box || !data.rungs.length) {
      if (box) box.hidden = true;
      return;
    }
    const all = data.rungs.flatMap((rung) => [...rung.early, ...rung.final]), ends = [Math.min(...all), Math.max(...all)];
    const traces = data.rungs.map((rung, i) => {
      const own = rung.places.map((place, n) => [place, n]).filter(([place]) => fits(data.trials[place]));
      return { type: "scatter", mode: "markers", name: `at epoch ${rung.epochs}`, x: own.map(([, n]) => rung.early[n]), y: own.map(([, n]) => rung.final[n]),
               customdata: own.map(([place]) => place), text: own.map(([place]) => hoverOfTrial(data.trials[place])), hovertemplate: "%{text}<extra></extra>",
               marker: { symbol: ["circle", "diamond", "square", "triangle-up"][i % 4], size: 9, color: FIFTHS[isDark() ? "dark" : "light"][(i + 2) % 5], opacity: 0.8 } };
    });
    traces.push({ type: "scatter", mode: "lines", x: ends, y: ends, line: { color: style("--quiet"), width: 1, dash: "dot" }, hoverinfo: "skip", showlegend: false });
    plot("plot-rungs", traces, { xaxis: { title: { text: "accuracy at the rung, validation" } }, yaxis: { title: { text: "at the end" } }, showlegend: true,
                                 legend: { orientation: "h", y: 1.05, yanchor: "bottom" } });
  };

  const draw = () => { drawFront(); drawProgress(); if (data.trials.length) { drawParallel(); drawSlices(); drawRungs(); } };

  // Filters

  const tableRows = () => [...document.querySelectorAll("#trials tbody tr")];

  const update = () => {
    for (const select of document.querySelectorAll("#filters select")) select.value = wanted[select.dataset.group] ?? "";
    const count = data.trials.filter(fits).length, names = Object.entries(wanted).map(([group, value]) => `${GROUPS[group]} ${value}`);
    document.getElementById("filtered").textContent = names.length ? `${count} of ${data.trials.length} trials: ${names.join(", ")}` : `all ${data.trials.length} trials`;
    for (const row of tableRows()) row.hidden = !fits(data.trials[Number(row.dataset.place)]);
    const panel = document.getElementById("chosen");
    panel.hidden = chosen === null;
    panel.replaceChildren();
    if (chosen !== null) {
      const trial = data.trials[chosen], list = make("dl");
      for (const [name, value] of Object.entries(trial.config)) {
        if (value === null) continue;
        const pair = make("div", `${name}: `);
        pair.append(make("strong", shown(value)));
        list.append(pair);
      }
      panel.append(make("h3", `Trial ${trial.trial}: ${named(trial).join(", ")}`), make("p",
        `${trial.state} after ${trial.epochs} epochs: ${trial.accuracy.toFixed(3)} on validation for ${digits(trial.cost, 3)} ${data.unit}`), list);
    }
    draw();
  };

  const choose = (place) => { // the trial and those like it; the same one again: all
    const isSame = chosen === place;
    chosen = isSame ? null : place;
    for (const group of Object.keys(GROUPS)) {
      if (isSame) delete wanted[group];
      else wanted[group] = valueOf(data.trials[place], group);
    }
    update();
  };

  const buildFilters = () => {
    const box = document.getElementById("filters");
    for (const [group, title] of Object.entries(GROUPS)) {
      const label = make("label", title), select = make("select", "", { "data-group": group });
      select.append(make("option", "all", { value: "" }));
      const values = [...new Set(data.trials.map((trial) => trial[group]))].sort((a, b) => (a > b) - (a < b));
      for (const value of values) select.append(make("option", valueOf({ [group]: value }, group)));
      select.addEventListener("change", () => {
        chosen = null;
        if (select.selectedIndex) wanted[group] = select.value;
        else delete wanted[group];
        update();
      });
      label.append(select);
      box.append(label);
    }
    const all = make("button", "Show all", { type: "button" });
    all.addEventListener("click", () => {
      chosen = null;
      for (const group of Object.keys(GROUPS)) delete wanted[group];
      update();
    });
    box.append(all);
  };

  // Tables

  const sortable = (text) => { // 0.942±0.008, 374k, 2x, 97%; what is missing comes last
    const found = /^([-+]?[\d.,]+)([kM]?)/.exec(text);
    if (!found) return text === "-" || text === "" ? null : text.toLowerCase();
    return Number(found[1].replaceAll(",", "")) * ({ k: 1e3, M: 1e6 }[found[2]] ?? 1);
  };

  const sortBy = (table, column, isDown) => {
    const body = table.tBodies[0], key = (row) => sortable(row.cells[column].textContent.trim());
    const compare = (a, b) => (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1);
    const rows = [...body.rows].sort((one, other) => {
      const a = key(one), b = key(other);
      if (a === null || b === null) return (a === null) - (b === null);
      return isDown ? compare(b, a) : compare(a, b);
    });
    body.append(...rows);
  };

  const buildSorting = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", head.textContent, { type: "button" });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const isDown = head.getAttribute("aria-sort") !== "descending" && (head.classList.contains("figure") || head.getAttribute("aria-sort") === "ascending");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
        sortBy(table, column, isDown);
      });
    });
  };

  const buildTrials = () => {
    tableRows().forEach((row, place) => {
      row.dataset.place = place;
      const cell = row.cells[0], button = make("button", cell.textContent.trim(), { type: "button", "aria-label": `trial ${cell.textContent.trim()}: show its configuration and those like it` });
      button.addEventListener("click", () => choose(place));
      cell.replaceChildren(button);
    });
  };

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { // no permission, or a browser that counts a file as insecure
      const area = make("textarea", text);
      document.body.append(area);
      area.select();
      const isDone = document.execCommand("copy");
      area.remove();
      return isDone;
    }
  };

  document.documentElement.classList.add("js");
  buildFilters();
  buildTrials();
  document.querySelectorAll("table.sortable").forEach(buildSorting);
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const isDone = await copy(`${data.copies[button.dataset.copy]}\n`);
      document.getElementById("copied").textContent = isDone ? `${button.dataset.copy === "csv" ? "CSV" : "LaTeX"} copied` : "The browser did not let it be copied";
      button.focus();
    });
  }
  update();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
