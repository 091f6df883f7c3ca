"use strict";
// The charts of the report. All of them share one range of steps and one cursor.
(() => {
  const source = document.getElementById("history");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const known = data.evals.filter((point) => point.loss !== null);
  const all = [0, Math.max(1, ...data.steps.slice(-1), ...known.slice(-1).map((point) => point.step))];
  const charts = [...document.querySelectorAll("[data-chart]")].map((place) => ({ place, name: place.dataset.chart }));
  const readout = document.getElementById("readout");
  const logScale = document.getElementById("log-scale");
  let range = [...all];
  let cursor = null; // index into data.steps

  function draw(tag, attributes, parent, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  // Round numbers that divide a range into about `count` parts.
  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((n) => n * power >= rough * 0.999) * power;
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
    return found;
  }

  function number(value) {
    const size = Math.abs(value);
    if (size !== 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e−");
    if (size >= 1e4) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  }

  function lines(name) {
    if (name !== "loss") return [{ kind: name, xs: data.steps, ys: data[name] }];
    const smooth = data.smoothed.length > 0;
    return [
      { kind: smooth ? "raw" : "train", xs: data.steps, ys: data.loss, label: smooth ? "" : "training" },
      { kind: "train", xs: data.steps, ys: data.smoothed, label: "training" },
      { kind: "eval", xs: known.map((p) => p.step), ys: known.map((p) => p.loss), label: "validation" },
    ].filter((line) => line.ys.length);
  }

  // Lowest and highest value in sight, with some air. The rate and the norm stand on zero.
  function valueRange(name, shown, scale) {
    let low = Infinity, high = -Infinity;
    for (const { xs, ys } of shown) {
      xs.forEach((x, i) => {
        if (ys[i] === null || x < range[0] || x > range[1]) return;
        low = Math.min(low, scale(ys[i]));
        high = Math.max(high, scale(ys[i]));
      });
    }
    if (low > high) return null;
    if (name === "norm" || name === "rate") low = Math.min(low, 0);
    const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low === 0 ? 0 : low - air, high + air];
  }

  function path(line, x, y) {
    let text = "", pen = false;
    line.xs.forEach((step, i) => {
      // One point beyond each edge is kept, so that lines reach the edge.
      const outside = line.xs[Math.min(i + 1, line.xs.length - 1)] < range[0] || line.xs[Math.max(i - 1, 0)] > range[1];
      if (line.ys[i] === null || outside) { pen = false; return; }
      text += `${pen ? "L" : "M"}${x(step).toFixed(1)} ${y(line.ys[i]).toFixed(1)}`;
      pen = true;
    });
    return text;
  }

  function render(chart) {
    const width = Math.max(240, Math.round(chart.place.clientWidth));
    const large = chart.name === "loss";
    const labelled = large && width > 560;
    const height = large ? Math.min(380, Math.max(250, width * 0.42)) : 170;
    const box = { left: 58, right: width - (labelled ? 84 : 14), top: 10, bottom: height - 26 };
    chart.place.replaceChildren();
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img" }, chart.place);
    svg.setAttribute("aria-label", `${chart.place.parentElement.querySelector("figcaption").innerText} over steps ${Math.round(range[0])} to ${Math.round(range[1])}`);
    const logarithmic = large && logScale.checked;
    const scale = logarithmic ? (v) => Math.log10(Math.max(v, 1e-6)) : (v) => v;
    const shown = lines(chart.name);
    const values = valueRange(chart.name, shown, scale);
    if (!values) {
      draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "not recorded in these steps");
      return;
    }
    const x = (step) => box.left + ((step - range[0]) / (range[1] - range[0])) * (box.right - box.left);
    const y = (value) => box.bottom - ((scale(value) - values[0]) / (values[1] - values[0])) * (box.bottom - box.top);
    const clip = `clip-${chart.name}`;
    draw("rect", { x: box.left, y: 0, width: box.right - box.left, height: box.bottom }, draw("clipPath", { id: clip }, svg));
    const heights = logarithmic
      ? ticks(10 ** values[0], 10 ** values[1], 6).filter((v) => v > 0)
      : ticks(values[0], values[1], large ? 9 : 4);
    for (const value of heights) {
      draw("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }, svg);
      draw("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, svg, number(value));
    }
    for (const step of ticks(range[0], range[1], width / 110).filter(Number.isInteger)) {
      draw("line", { class: "axis", x1: x(step), x2: x(step), y1: box.bottom, y2: box.bottom + 4 }, svg);
      draw("text", { x: x(step), y: box.bottom + 18, "text-anchor": "middle" }, svg, number(step));
    }
    draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }, svg);
    const plot = draw("g", { "clip-path": `url(#${clip})` }, svg);
    if (data.warmup > 1) {
      const shade = draw("rect", { class: "warmup", x: x(0), y: box.top, width: x(data.warmup) - x(0), height: box.bottom - box.top }, plot);
      draw("title", {}, shade, `warm-up: ${data.warmup} steps`);
    }
    for (const step of data.starts) draw("line", { class: "epoch", x1: x(step), x2: x(step), y1: box.top, y2: box.bottom }, plot);
    for (const mark of data.marks) {
      if (mark.step < range[0] || mark.step > range[1]) continue;
      const line = draw("line", { class: "watcher", x1: x(mark.step), x2: x(mark.step), y1: box.top, y2: box.bottom }, plot);
      draw("title", {}, line, `${mark.check} at step ${mark.step}`);
      const right = x(mark.step) - box.left < 140; // no room to the left
      if (large) draw("text", { class: "watcher", x: x(mark.step) + (right ? 4 : -4), y: box.top + 12, "text-anchor": right ? "start" : "end" }, plot, mark.check);
    }
    for (const line of shown) draw("path", { class: line.kind, d: path(line, x, y) }, plot);
    if (large) {
      for (const point of known) {
        if (point.step < range[0] || point.step > range[1]) continue;
        const mark = draw("circle", { class: point === best ? "mark best" : "mark", cx: x(point.step), cy: y(point.loss), r: point === best ? 6 : 4.5 }, svg);
        draw("title", {}, mark, `validation loss ${number(point.loss)} at step ${point.step}${point === best ? ", the best" : ""}`);
      }
    }
    if (labelled) label(svg, shown.filter((line) => line.label), box, y);
    Object.assign(chart, { svg, x, box, width, line: draw("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" }, svg) });
    listen(chart);
  }

  const best = known.filter((point) => point.best).pop();

  // Names at the right ends of lines, moved apart where they would touch.
  function label(svg, named, box, y) {
    const ends = named.map((line) => {
      const last = line.xs.findLastIndex((step, i) => step <= range[1] && line.ys[i] !== null);
      return { line, y: last < 0 ? box.bottom : Math.min(box.bottom, Math.max(box.top, y(line.ys[last]))) };
    }).sort((a, b) => a.y - b.y);
    ends.forEach((end, i) => {
      if (i) end.y = Math.max(end.y, ends[i - 1].y + 16);
      draw("text", { class: end.line.kind, x: box.right + 8, y: end.y + 4 }, svg, end.line.label);
    });
  }

  function point(index) {
    cursor = index === null || !data.steps.length ? null : Math.max(0, Math.min(data.steps.length - 1, index));
    const step = cursor === null ? null : data.steps[cursor];
    for (const chart of charts) {
      if (!chart.line) continue;
      const visible = step !== null && step >= range[0] && step <= range[1];
      chart.line.setAttribute("visibility", visible ? "visible" : "hidden");
      if (visible) for (const side of ["x1", "x2"]) chart.line.setAttribute(side, chart.x(step));
    }
    if (cursor === null) { readout.textContent = ""; return; }
    const near = known.findLast((evaluation) => evaluation.step <= step);
    const parts = [`step ${step.toLocaleString("en")}`];
    const add = (name, value) => { if (value !== null && value !== undefined) parts.push(`${name} ${number(value)}`); };
    add("epoch", data.epochs[cursor] === null ? null : Number(data.epochs[cursor].toFixed(2)));
    add("tokens", data.tokens[cursor]);
    add("loss", data.loss[cursor]);
    add("smoothed", data.smoothed[cursor]);
    if (near) parts.push(`validation ${number(near.loss)} (step ${near.step.toLocaleString("en")})`);
    add("gradient norm", data.norm[cursor]);
    add("rate", data.rate[cursor]);
    readout.textContent = parts.join(" · ");
  }

  function zoom(low, high) {
    const smallest = Math.min(4, all[1] - all[0]);
    if (high - low < smallest) { const middle = (low + high) / 2; low = middle - smallest / 2; high = middle + smallest / 2; }
    const size = Math.min(high - low, all[1] - all[0]);
    low = Math.min(Math.max(low, all[0]), all[1] - size);
    range = [low, low + size];
    charts.forEach(render);
    point(cursor);
  }

  function scaleBy(factor) {
    const middle = cursor !== null ? data.steps[cursor] : (range[0] + range[1]) / 2;
    const at = (middle - range[0]) / (range[1] - range[0]);
    const size = (range[1] - range[0]) * factor;
    zoom(middle - at * size, middle + (1 - at) * size);
  }

  const commands = { in: () => scaleBy(0.5), out: () => scaleBy(2), all: () => zoom(...all) };

  function nearest(step) {
    let low = 0, high = data.steps.length - 1;
    while (low < high) { const middle = (low + high) >> 1; if (data.steps[middle] < step) low = middle + 1; else high = middle; }
    return low > 0 && step - data.steps[low - 1] < data.steps[low] - step ? low - 1 : low;
  }

  function listen({ svg, box, width }) {
    let from = null, chosen = null;
    const stepAt = (event) => {
      const frame = svg.getBoundingClientRect();
      const px = Math.min(box.right, Math.max(box.left, ((event.clientX - frame.left) / frame.width) * width));
      return { px, step: range[0] + ((px - box.left) / (box.right - box.left)) * (range[1] - range[0]) };
    };
    // The press of a mouse selects steps, not text; the keyboard's frame is not drawn for it.
    svg.addEventListener("mousedown", (event) => { event.preventDefault(); svg.focus({ preventScroll: true, focusVisible: false }); });
    svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      from = stepAt(event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      const now = stepAt(event);
      point(nearest(now.step));
      if (from === null || Math.abs(now.px - from.px) < 8) return;
      chosen ??= draw("rect", { class: "chosen", y: box.top, height: box.bottom - box.top }, svg);
      chosen.setAttribute("x", Math.min(from.px, now.px));
      chosen.setAttribute("width", Math.abs(now.px - from.px));
    });
    svg.addEventListener("pointerup", (event) => {
      const start = from, now = stepAt(event), dragged = chosen !== null;
      from = null;
      if (dragged) zoom(Math.min(start.step, now.step), Math.max(start.step, now.step));
    });
    svg.addEventListener("pointercancel", () => { from = null; chosen?.remove(); chosen = null; });
    svg.addEventListener("pointerleave", () => { if (from === null) point(null); });
    svg.addEventListener("dblclick", commands.all);
  }

  document.addEventListener("keydown", (event) => {
    const chart = charts.findIndex(({ svg }) => svg === document.activeElement);
    if (chart < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const move = (by) => point((cursor ?? nearest(range[0])) + by * Math.max(1, Math.round(data.steps.length / 200)));
    const keys = { ArrowLeft: () => move(-1), ArrowRight: () => move(1), "+": commands.in, "=": commands.in, "-": commands.out, "−": commands.out, 0: commands.all };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
    charts[chart].svg.focus();
  });
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", commands[button.dataset.zoom]);
  logScale.addEventListener("change", () => zoom(...range));
  for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;
  let seen = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now !== seen) { seen = now; zoom(...range); }
  }).observe(document.querySelector(".charts"));
})();
