"use strict";
// The ontology as a tree from left to right: each node below the first parent that reaches it, further parents as thin lines.
(() => {
  const source = document.getElementById("ontology-graph");
  if (!source) return;
  const { titles, edges } = JSON.parse(source.textContent);
  const names = ["right-edge", "wrong-edge", "missing-edge"];
  const verdicts = ["right", "wrong", "missing"];
  const place = document.getElementById("tree");
  const panel = document.getElementById("tree-node");
  const find = document.getElementById("tree-find");
  const boxes = [...document.querySelectorAll("[data-status]")];
  const LABEL = 14, DOT = 2.6;
  const height = 620;
  let shown = new Set([0, 1, 2]);
  let nodes = [], order = [], depth = 1, rows = 1;
  let view = { top: 0, scale: 1, left: 0 };
  let width = 900, column = 200, chosen = null, svg = null, drawn = [];

  function element(tag, attributes, parent, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  // Places all nodes: breadth first from the root, right edges before missing and wrong ones, large families on top.
  function layOut() {
    const below = titles.map(() => []);
    for (const edge of edges) if (shown.has(edge[2])) below[edge[0]].push(edge);
    const rank = [0, 2, 1];
    for (const list of below) list.sort((a, b) => rank[a[2]] - rank[b[2]] || b[3] - a[3]);
    nodes = titles.map((title, id) => ({ id, title, edge: null, children: [], level: -1, leaves: 0, y: 0 }));
    nodes[0].level = 0;
    order = [nodes[0]];
    for (let i = 0; i < order.length; i++) {
      for (const edge of below[order[i].id]) {
        const child = nodes[edge[1]];
        if (child.level >= 0) continue;
        child.level = order[i].level + 1;
        child.edge = edge;
        order[i].children.push(child);
        order.push(child);
      }
    }
    for (let i = order.length - 1; i >= 0; i--) {
      const node = order[i];
      node.leaves = node.children.reduce((sum, child) => sum + child.leaves, 0) || 1;
      node.children.sort((a, b) => b.leaves - a.leaves);
    }
    depth = Math.max(1, order.at(-1).level); // breadth first: no other is deeper
    rows = nodes[0].leaves;
    nodes[0].first = 0;
    for (const node of order) {
      let first = node.first;
      node.y = first + node.leaves / 2;
      for (const child of node.children) { child.first = first; first += child.leaves; }
    }
  }

  const fit = () => (height - 24) / rows;
  const xOf = (node) => 12 + node.level * column - view.left;
  const yOf = (node) => (node.y - view.top) * view.scale + 12;

  function curve(a, b) {
    const [x1, y1, x2, y2] = [xOf(a), yOf(a), xOf(b), yOf(b)];
    const middle = (x1 + x2) / 2;
    return `M${x1.toFixed(1)} ${y1.toFixed(1)}C${middle.toFixed(1)} ${y1.toFixed(1)} ${middle.toFixed(1)} ${y2.toFixed(1)} ${x2.toFixed(1)} ${y2.toFixed(1)}`;
  }

  function visible(node) { return yOf(node) > -20 && yOf(node) < height + 20; }

  function render() {
    width = Math.max(280, Math.round(place.clientWidth));
    column = Math.max(150, (width - 170) / depth);
    view.scale = Math.min(60, Math.max(fit(), view.scale));
    view.top = Math.min(Math.max(0, view.top), Math.max(0, rows - (height - 24) / view.scale));
    view.left = Math.min(Math.max(0, view.left), Math.max(0, depth * column + 180 - width));
    const paths = ["", "", ""], cross = ["", "", ""], dots = ["", "", ""];
    for (const edge of edges) {
      const [u, v, status] = edge;
      if (!shown.has(status) || nodes[u].level < 0 || nodes[v].level < 0) continue;
      if (!visible(nodes[u]) && !visible(nodes[v])) continue;
      if (nodes[v].edge === edge) paths[status] += curve(nodes[u], nodes[v]);
      else cross[status] += curve(nodes[u], nodes[v]);
    }
    const focused = svg !== null && document.activeElement === svg;
    place.replaceChildren();
    svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `Graph of ${order.length} nodes` }, place);
    for (const status of [2, 1, 0]) {
      if (cross[status]) element("path", { d: cross[status], class: `${names[status]} further` }, svg);
      if (paths[status]) element("path", { d: paths[status], class: names[status] }, svg);
    }
    drawn = order.filter(visible);
    for (const node of drawn) {
      const x = xOf(node), y = yOf(node);
      dots[node.edge ? node.edge[2] : 0] += `M${(x - DOT).toFixed(1)} ${y.toFixed(1)}a${DOT} ${DOT} 0 1 0 ${2 * DOT} 0a${DOT} ${DOT} 0 1 0 ${-2 * DOT} 0`;
    }
    dots.forEach((d, status) => { if (d) element("path", { d, class: `dot ${names[status]}` }, svg); });
    if (chosen !== null && nodes[chosen].level >= 0) {
      let way = "";
      for (let node = nodes[chosen]; node.edge; node = nodes[node.edge[0]]) way += curve(nodes[node.edge[0]], node);
      if (way) element("path", { d: way, class: "chosen-way" }, svg);
      element("circle", { cx: xOf(nodes[chosen]), cy: yOf(nodes[chosen]), r: 5, class: "chosen-node" }, svg);
    }
    label();
    if (focused) svg.focus({ preventScroll: true });
    listen();
  }

  // Labels where there is room, those of large families first.
  function label() {
    const taken = new Map(); // place of a label by level and row
    const wanted = [...drawn].sort((a, b) => (b.id === chosen) - (a.id === chosen) || b.leaves - a.leaves);
    const room = Math.max(6, Math.floor((column - 20) / 6.4));
    for (const node of wanted) {
      const y = yOf(node), row = Math.floor(y / LABEL);
      if ([row - 1, row, row + 1].some((each) => Math.abs((taken.get(`${node.level} ${each}`) ?? Infinity) - y) < LABEL)) continue;
      taken.set(`${node.level} ${row}`, y);
      const text = node.title.length > room && node.children.length ? `${node.title.slice(0, room - 1)}…` : node.title.slice(0, 60);
      element("text", { x: (xOf(node) + 6).toFixed(1), y: (y + 4).toFixed(1), class: node.edge ? names[node.edge[2]] : "root-node" }, svg, text);
    }
  }

  function choose(id) {
    chosen = id;
    const add = (tag, text, parent, name) => {
      const made = document.createElement(tag);
      made.textContent = text;
      if (name) made.className = name;
      parent.append(made);
      return made;
    };
    panel.replaceChildren();
    add("h4", titles[id], panel);
    const way = [];
    for (let node = nodes[id]; node; node = node.edge ? nodes[node.edge[0]] : null) way.unshift(node.title);
    add("p", way.join(" → "), panel, "caption");
    const list = add("ul", "", panel, "plain");
    for (const [u, , status, weight, log, documents, attached] of edges.filter((edge) => edge[1] === id)) {
      const item = add("li", "", list);
      add("b", verdicts[status], item, names[status]);
      const facts = [` below ${titles[u]}`];
      if (attached) facts.push("put there by pruning, for it had no parent left");
      else facts.push(`${weight.toLocaleString("en")} ${status === 2 ? "true " : ""}${weight === 1 ? "document" : "documents"}`);
      if (log !== null) facts.push(`mean log-probability ${log.toFixed(2)}`);
      if (documents.length) facts.push(documents.join(", ") + (weight > documents.length ? " …" : ""));
      add("span", facts.join(" · "), item);
    }
    add("p", `${nodes[id].children.length.toLocaleString("en")} nodes directly below`, panel, "caption");
    render();
  }

  function scaleBy(factor, at = height / 2) {
    const y = view.top + (at - 12) / view.scale;
    view.scale = Math.min(60, Math.max(fit(), view.scale * factor));
    view.top = y - (at - 12) / view.scale;
    render();
  }

  function whole() { view = { top: 0, scale: fit(), left: 0 }; render(); }

  const commands = { in: () => scaleBy(1.8), out: () => scaleBy(1 / 1.8), all: whole };

  function listen() {
    let from = null, moved = false;
    const at = (event) => {
      const frame = svg.getBoundingClientRect();
      return { x: ((event.clientX - frame.left) / frame.width) * width, y: ((event.clientY - frame.top) / frame.height) * height };
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      svg.focus({ preventScroll: true, focusVisible: false });
      from = { ...at(event), top: view.top, left: view.left };
      moved = false;
      const move = (later) => {
        const now = at(later);
        if (Math.abs(now.x - from.x) + Math.abs(now.y - from.y) > 5) moved = true;
        if (!moved) return;
        view.top = from.top - (now.y - from.y) / view.scale;
        view.left = from.left - (now.x - from.x);
        render();
      };
      const end = (later) => {
        window.removeEventListener("pointermove", move);
        if (moved || later.type === "pointercancel") return;
        const now = at(later);
        // A click on a label counts for its node as well.
        const far = (node) => Math.hypot(Math.max(xOf(node) - now.x, now.x - xOf(node) - 90, 0), 2 * (yOf(node) - now.y));
        const near = drawn.reduce((best, node) => (best === null || far(node) < far(best) ? node : best), null);
        if (near && far(near) < 20) choose(near.id);
      };
      window.addEventListener("pointermove", move);
      window.addEventListener("pointerup", end, { once: true });
      window.addEventListener("pointercancel", end, { once: true });
    });
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      scaleBy(event.deltaY < 0 ? 1.25 : 0.8, at(event).y);
    }, { passive: false });
    svg.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const step = 60 / view.scale;
      const keys = {
        ArrowUp: () => { view.top -= step; render(); }, ArrowDown: () => { view.top += step; render(); },
        ArrowLeft: () => { view.left -= 60; render(); }, ArrowRight: () => { view.left += 60; render(); },
        "+": commands.in, "=": commands.in, "-": commands.out, "−": commands.out, 0: commands.all,
      };
      if (!(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  let found = -1;
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") { found = -1; return; }
    event.preventDefault();
    const text = find.value.trim().toLowerCase();
    const hits = text ? order.filter((node) => node.title.toLowerCase().includes(text)) : [];
    if (!hits.length) return;
    found = (found + 1) % hits.length;
    const node = hits[found];
    view.scale = Math.max(view.scale, Math.min(60, LABEL + 2));
    view.top = node.y - height / 2 / view.scale;
    view.left = node.level * column - width / 2;
    choose(node.id);
  });
  for (const button of document.querySelectorAll("[data-tree]")) button.addEventListener("click", commands[button.dataset.tree]);
  for (const box of boxes) {
    box.addEventListener("change", () => {
      shown = new Set(boxes.filter((each) => each.checked).map((each) => Number(each.dataset.status)));
      layOut();
      whole();
    });
  }
  for (const hidden of document.querySelectorAll(".needs-tree")) hidden.hidden = false;
  layOut();
  let seen = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now !== seen) { seen = now; whole(); }
  }).observe(place);
})();
