"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (name) => document.getElementById(name);
  const root = document.documentElement;
  const stage = byId("stage"), canvas = byId("lines"), near = byId("near"), scene = byId("scene"), moved = byId("moved"), tip = byId("tip");
  const [NODE, READER] = data.shapes;
  const UNION = "union";
  const KINDS = { q: "q", k: "k", v: "v", mlp: "an MLP", logits: "logits" };
  const room = { wide: stage.clientWidth, high: stage.clientHeight };  // kept, for asking again costs a layout
  const text = (value) => value.toLocaleString("en");
  const escaped = (value) => value.replace(/[&<>"]/g, (one) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[one]);

  // ------------------------------------------------------------------ what there is
  // Of circuits with roles there are two: roles side by side, and the union. `build` puts one of them into the page.
  let layout = data;
  let nodes = [], readers = [], heads = [], frames = [], edges = [], parts = [], labels = [];

  let places = data;  // of what is shown: those of all roles side by side, or of a single one

  function load() {
    places = layout.single?.[state.role] ?? layout;
    parts = layout.parts.map(([name, left, right, middle], place) => ({ name, left, right, middle, place }));
    nodes = layout.nodes.map(([name, kind, layer, x, y, width, part], place) => ({ name, kind, layer, x, y, width, place, part, label: name.split("@")[0], scored: !layout.scored || layout.scored.includes(parts[part].name) }));
    readers = layout.readers.map(([name, kind, x, y, of], place) => ({ name, kind, x, y, of, layer: nodes[of[0]].layer, part: nodes[of[0]].part, to: layout.leads ? layout.leads[place] : of }));
    heads = readers.filter((one) => "qkv".includes(one.kind));
    if (places !== layout) {  // the same order as among all roles
      const one = parts.find((part) => part.name === state.role);
      [one.left, one.right, one.middle] = places.part;
      nodes.filter((node) => node.part === one.place).forEach((node, at) => ([node.x, node.y] = places.nodes[at]));
      readers.filter((reader) => reader.part === one.place).forEach((reader, at) => ([reader.x, reader.y] = places.readers[at]));
    }
    frames = places.boxes.map(([x, y, width, height]) => ({
      x, y, width, height,
      of: nodes.filter((node) => here(node.part) && node.x > x && node.x < x + width && node.y > y && node.y < y + height),
    }));
    edges = [];
    for (let at = 0; at < layout.edges.length; at += 2) {
      const reader = readers[layout.edges[at]], writer = nodes[layout.writers[layout.edges[at + 1]]];
      edges.push({ reader, writer, curve: curve(writer, reader), name: `${writer.label}->${reader.name}` });
    }
  }

  // The same curve as in the still drawings.
  function curve(writer, reader) {
    const x1 = writer.x, y1 = writer.y - NODE / 2;
    const x2 = reader.x, y2 = reader.y + ("qkv".includes(reader.kind) ? READER : NODE) / 2;
    const rise = y1 - y2, reach = Math.max(14, 0.42 * rise);
    const size = places.size[2] * (1 - Math.exp(-Math.max(rise - 60, 0) / 700)) * Math.exp(-Math.abs(x2 - x1) / 90);
    const bow = (x1 + x2) / 2 >= parts[writer.part].middle ? size : -size;
    return [x1, y1, x1 + bow, y1 - reach, x2 + bow, y2 + reach, x2, y2];
  }

  // From keys and values of a head at one role to the head at another: below the row and up again.
  function lead(reader, node) {
    const y1 = reader.y + READER / 2, y2 = node.y + NODE / 2, dip = 8 + Math.min(Math.abs(node.x - reader.x) / 40, 26);
    return [reader.x, y1, reader.x + 0.2 * (node.x - reader.x), y1 + dip, node.x - 0.2 * (node.x - reader.x), y1 + dip, node.x, y2];
  }

  // ------------------------------------------------------------------ what is chosen
  const many = data.circuits.length > 1;
  const scored = data.scores.some((one) => one !== null);
  const state = {
    circuit: data.start, compare: data.compare, role: data.role ?? null, share: 1, low: 0, high: data.layers - 1, dangling: false,
    hidden: new Set(), held: null, hover: null, edge: null, found: new Set(),
  };
  const view = { scale: 1, x: 0, y: 0 };
  let shown = [];  // visible edges, the weakest first: {edge, share, score, part}
  let ties = [], leads = [];  // attention between roles, {reader, node, curve}: of all edges, of visible ones
  let related = null;  // of the node in focus: Map from edge to 2 (touches it) or 1 (on a way from or to it), and nodes
  let colours = {};
  let waiting = false, drawn = view, settling = 0, resting = 0;

  const total = () => Math.max(layout.order[state.circuit].length, state.compare === null ? 0 : layout.order[state.compare].length);
  // The slider is logarithmic, from ten edges to all.
  const amount = () => {
    const all = total(), least = Math.min(10, all);
    return state.share >= 1 ? all : Math.round(least * (all / least) ** state.share);
  };

  function taken(circuit) {
    const strength = layout.shares[circuit], scores = layout.scores[circuit];
    const count = scores === null ? layout.order[circuit].length : amount();
    const found = layout.order[circuit].slice(0, count).map((number, place) => ({
      edge: edges[number], share: strength === null ? 1 : strength[place], score: scores === null ? null : scores[place], part: null,
    }));
    const live = living(found, circuit);
    found.forEach((one) => (one.dangles = !live(one)));
    return found;
  }

  // Nodes whose output depends on a reader in one of these circuits: k and v lead along open attention edges only.
  const circuitsShown = () => (state.compare === null ? [state.circuit] : [state.circuit, state.compare]);
  const attention = (data.attention ?? data.circuits.map(() => null)).map((open) => open && new Map(Object.entries(open).map(([head, between]) => [head, new Set(between)])));
  function heard(reader, circuits = circuitsShown()) {
    const open = (circuit, node) => attention[circuit] === null || attention[circuit].get(node.label)?.has(`${parts[node.part].name}<-${parts[reader.part].name}`);
    const all = !layout.leads || !"kv".includes(reader.kind);
    return reader.to.map((at) => nodes[at]).filter((node) => all || circuits.some((circuit) => open(circuit, node)));
  }

  // Whether an edge lies on a way from an embedding to the logits.
  function living(list, circuit) {
    const { into, out } = ends(list, [circuit]);
    const fed = walk(nodes.filter((node) => node.kind === "embed"), (node) => out[node.place].flatMap((one) => heard(one.edge.reader, [circuit])));
    const reaching = walk(nodes.filter((node) => node.kind === "logits" && node.scored), (node) => into[node.place].map((one) => one.edge.writer));
    return (one) => fed.has(one.edge.writer) && heard(one.edge.reader, [circuit]).some((node) => reaching.has(node));
  }

  // Edges out of a node, into its readers, and into those that its output depends on: with roles also elsewhere.
  function ends(list, circuits = circuitsShown()) {
    const into = nodes.map(() => []), out = nodes.map(() => []), own = nodes.map(() => []);
    for (const one of list) {
      out[one.edge.writer.place].push(one);
      for (const at of one.edge.reader.of) own[at].push(one);
      for (const node of heard(one.edge.reader, circuits)) into[node.place].push(one);
    }
    return { into, out, own };
  }

  function walk(from, next) {
    const seen = new Set(from), todo = [...from];
    while (todo.length) {
      for (const node of next(todo.pop())) {
        if (!seen.has(node)) { seen.add(node); todo.push(node); }
      }
    }
    return seen;
  }

  function candidates() {
    const first = taken(state.circuit);
    if (state.compare === null) return first;
    const second = new Map(taken(state.compare).map((one) => [one.edge, one]));
    const found = first.map((one) => {
      const other = second.get(one.edge);
      second.delete(one.edge);
      return other ? { ...one, part: "both", share: Math.max(one.share, other.share), other: other.score, dangles: one.dangles && other.dangles } : { ...one, part: "first" };
    });
    found.push(...[...second.values()].map((one) => ({ ...one, part: "second" })));
    return found.sort((a, b) => b.share - a.share);
  }

  const inside = (layer) => (layer < 0 ? state.low === 0 : layer >= data.layers ? state.high === data.layers - 1 : layer >= state.low && layer <= state.high);
  const here = (part) => state.role === null || state.role === UNION || parts[part].name === state.role;
  const passes = (one) =>
    here(one.edge.writer.part) && !state.hidden.has(one.edge.reader.kind) && !(one.part && state.hidden.has(one.part)) && inside(one.edge.writer.layer) && inside(one.edge.reader.layer);

  // ------------------------------------------------------------------ light and dark
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  function theme(dark = root.dataset.theme !== "dark") {
    root.dataset.theme = dark ? "dark" : "light";
    byId("theme").textContent = dark ? "Light" : "Dark";
    const style = getComputedStyle(root);
    for (const name of [...Object.keys(KINDS), "first", "second", "both", "ground", "raised", "ink", "quiet", "line"]) colours[name] = style.getPropertyValue(`--${name}`).trim();
    draw();
  }
  prefers.addEventListener("change", () => theme(prefers.matches));
  theme(prefers.matches);

  // ------------------------------------------------------------------ nodes
  const SVG = "http://www.w3.org/2000/svg";
  const placed = (into, texts, mark) => texts.map((one) => {
    const made = document.createElement("span");
    made.textContent = one;
    made.className = mark;
    byId(into).append(made);
    return made;
  });

  function build() {
    layout = state.role === UNION ? data.union : data;
    load();
    byId("boxes").innerHTML = frames.map((one) => `<rect class="frame" x="${one.x}" y="${one.y}" width="${one.width}" height="${one.height}" rx="5"/>`).join("");
    byId("nodes").innerHTML =
      nodes.map((one) => `<g class="node ${one.kind}" data-node="${one.place}" role="button" tabindex="-1" aria-pressed="false" aria-label="${escaped(one.name)}" transform="translate(${one.x},${one.y})"><rect x="${-one.width / 2}" y="${-NODE / 2}" width="${one.width}" height="${NODE}" rx="4"/><text y="4">${one.label}</text></g>`).join("") +
      heads.map((one) => `<g class="reader ${one.kind}" transform="translate(${one.x},${one.y})"><rect x="${-READER / 2}" y="${-READER / 2}" width="${READER}" height="${READER}" rx="2"/><text y="2.8">${one.kind}</text></g>`).join("");
    document.querySelectorAll(".frame").forEach((made, place) => (frames[place].made = made));
    document.querySelectorAll(".node").forEach((made, place) => (nodes[place].made = made));
    document.querySelectorAll(".reader").forEach((made, place) => (heads[place].made = made));
    byId("labels").replaceChildren();
    const rows = placed("labels", places.rows.map(([words]) => words), "row");
    labels = places.rows.map(([words, y], place) => ({ made: rows[place], y, words }));
    const headings = placed("labels", parts.map((one) => one.name), "heading");
    parts.forEach((one) => (one.made = headings[one.place]));
    [...nodes].reverse().find((node) => node.kind === "logits").made.setAttribute("tabindex", "0");
    byId("names").replaceChildren();
  }

  // ------------------------------------------------------------------ from choice to drawing
  let links = null;  // ends of the visible edges

  function choose() {
    const all = candidates();
    const dangling = all.filter((one) => one.dangles).length;
    const left = state.dangling ? all.filter((one) => !one.dangles) : all;
    shown = left.filter(passes).reverse();
    links = ends(shown);
    const active = new Set(nodes.filter((node) => (["logits", "embed"].includes(node.kind) && here(node.part) && (!layout.leads || links.own[node.place].length || (node.kind === "logits" && node.scored))) || links.out[node.place].length));
    const used = new Set(shown.map((one) => one.edge.reader));
    used.forEach((reader) => reader.of.length === 1 && active.add(nodes[reader.of[0]]));
    used.forEach((reader) => reader.of.some((at) => active.has(nodes[at])) || reader.of.forEach((at) => active.add(nodes[at])));
    nodes.forEach((node) => node.made.classList.toggle("off", !(node.active = active.has(node))));
    heads.forEach((reader) => reader.made.classList.toggle("off", !used.has(reader)));
    const writing = new Set(left.map((one) => one.edge.writer));
    ties = [...new Set(left.map((one) => one.edge.reader))].flatMap((reader) => heard(reader).filter((node) => node.part !== reader.part && writing.has(node)).map((node) => ({ reader, node, curve: lead(reader, node) })));
    leads = ties.filter((one) => used.has(one.reader) && links.out[one.node.place].length);
    frames.forEach((frame) => frame.made.setAttribute("visibility", frame.of.some((node) => node.active) ? "visible" : "hidden"));
    if (state.held && !state.held.active) state.held = null;
    report(left, dangling, active);
    relate();
    draw();
  }

  function report(left, dangling, active) {
    const circuit = data.circuits[state.circuit], all = total(), count = amount();
    byId("circuit-name").textContent = circuit.name;
    byId("circuit").setAttribute("aria-valuetext", circuit.name);
    byId("edges-shown").textContent = `${text(count)} of ${text(all)}`;
    byId("edges").setAttribute("aria-valuetext", `${text(count)} of ${text(all)} edges`);
    byId("layers-shown").textContent = `${state.low} to ${state.high}`;
    byId("dangling-count").textContent = text(dangling);
    for (const check of document.querySelectorAll("[data-part]")) {
      const name = check.dataset.part;
      const number = name === "leads" ? leads.length : left.filter((one) => here(one.edge.writer.part) && (name in KINDS ? one.edge.reader.kind : one.part) === name).length;
      check.parentElement.querySelector("output").textContent = text(number);
    }
    const texts = [`${text(shown.length)} edges between ${text(active.size)} nodes are shown, sparsity ${(100 * (1 - shown.length / layout.existing)).toFixed(2)} %.`, shown.length < all && "Figures below are of the whole circuit.", layout === data.union && "An edge of the union is kept at one role or more."];
    byId("status").textContent = texts.filter(Boolean).join(" ");
    byId("facts").replaceChildren(...circuit.facts.map(([term, words]) => {
      const line = document.createElement("div");
      line.append(Object.assign(document.createElement("dt"), { textContent: term }), Object.assign(document.createElement("dd"), { textContent: words }));
      return line;
    }));
    if (state.compare !== null) {
      const names = { first: `only ${circuit.name}`, second: `only ${data.circuits[state.compare].name}`, both: "both" };
      for (const name of Object.keys(names)) byId(`part-${name}`).textContent = names[name];
    }
    root.dataset.shown = shown.length;
  }

  const upstream = (node) => walk([node], (one) => links.into[one.place].map((link) => link.edge.writer));
  const downstream = (node) => walk([node], (one) => links.out[one.place].flatMap((link) => heard(link.edge.reader)));

  function relate() {
    const node = state.hover ?? state.held;
    related = null;
    if (node) {
      const above = upstream(node), below = downstream(node), kinds = new Map();
      for (const one of above) for (const link of links.into[one.place]) kinds.set(link, one === node ? 2 : 1);
      for (const one of below) for (const link of links.out[one.place]) kinds.set(link, one === node ? 2 : Math.max(kinds.get(link) ?? 0, 1));
      related = { edges: kinds, nodes: new Set([...above, ...below]), above: above.size - 1, below: below.size - 1 };
    } else if (state.edge) {
      related = { edges: new Map([[state.edge, 2]]), nodes: new Set([state.edge.edge.writer, ...state.edge.edge.reader.of.map((at) => nodes[at])]) };
    }
    const touched = related && (related.readers = new Set([...related.edges.keys()].map((one) => one.edge.reader)));
    nodes.forEach((one) => {
      one.made.classList.toggle("far", related !== null && !related.nodes.has(one));
      one.made.classList.toggle("held", one === state.held);
      one.made.classList.toggle("found", state.found.has(one));
      one.made.setAttribute("aria-pressed", String(one === state.held));
    });
    heads.forEach((one) => one.made.classList.toggle("far", touched !== null && !touched.has(one)));
    detail();
    light();
  }

  const width = (share) => data.widths[0] + (data.widths[1] - data.widths[0]) * Math.sqrt(share);
  const crowd = () => Math.min(16 / Math.sqrt(Math.max(shown.length, 1)), 0.9);
  function opacity(one, dense) {
    const own = dense * (0.45 + 0.55 * one.share);
    if (related === null) return own;
    const kind = related.edges.get(one);
    return kind === 2 ? 0.95 : kind === 1 ? Math.min(own, 0.4) : 0.035;
  }
  const colour = (one) => colours[one.part ?? one.edge.reader.kind];

  function draw() {
    if (!waiting) { waiting = true; requestAnimationFrame(paint); }
  }

  function prepared(canvas) {
    const ratio = devicePixelRatio || 1, pen = canvas.getContext("2d");
    const wide = Math.round(room.wide * ratio), high = Math.round(room.high * ratio);
    if (canvas.width !== wide || canvas.height !== high) { canvas.width = wide; canvas.height = high; }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, wide, high);
    pen.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    return pen;
  }

  function line(pen, one, alpha) {
    const [x1, y1, x2, y2, x3, y3, x4, y4] = one.edge.curve;
    pen.globalAlpha = alpha;
    pen.strokeStyle = colour(one);
    pen.lineWidth = Math.max(width(one.share), 0.6 / view.scale);
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.bezierCurveTo(x2, y2, x3, y3, x4, y4);
    pen.stroke();
  }

  function dashes(pen, some, alpha) {
    pen.globalAlpha = alpha;
    pen.lineWidth = Math.max(0.8, 0.6 / view.scale);
    pen.setLineDash([4, 3]);
    for (const { reader, curve: [x1, y1, x2, y2, x3, y3, x4, y4] } of some) {
      pen.strokeStyle = colours[reader.kind];
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.bezierCurveTo(x2, y2, x3, y3, x4, y4);
      pen.stroke();
    }
    pen.setLineDash([]);
  }

  const bands = () => parts.filter((one) => one.name && here(one.place)).map((one) => [one.left - 14, 0, one.right - one.left + 28, places.size[1]]);
  const visibleLeads = () => (state.hidden.has("leads") ? [] : leads);
  const faint = () => Math.min(4 / Math.sqrt(Math.max(leads.length, 1)), 0.6) * Math.min(2 * view.scale, 1);

  function paint() {
    waiting = false;
    clearTimeout(settling);
    const pen = prepared(canvas), dense = crowd();
    pen.globalAlpha = 1;
    pen.fillStyle = colours.raised;
    bands().forEach((one) => pen.fillRect(...one));
    dashes(pen, visibleLeads(), faint());
    shown.forEach((one) => line(pen, one, dense * (0.45 + 0.55 * one.share)));
    moved.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.scale})`);
    moved.classList.toggle("small", view.scale < 0.75);
    scene.style.transform = "";
    drawn = { ...view };
    label();
    light();
  }

  // What belongs to the node in focus, over the rest, which fades: at once its own edges, then all on ways through it.
  function light() {
    clearTimeout(resting);
    canvas.style.opacity = related ? 0.1 : 1;
    const pen = prepared(near);
    if (!related) return;
    const focus = state.hover ?? state.held, touches = (one) => one.node === focus || one.reader.of.includes(focus?.place);
    const ways = visibleLeads().filter((one) => related.readers.has(one.reader) && related.nodes.has(one.node));
    dashes(pen, ways.filter((one) => !touches(one)), 0.15);
    dashes(pen, ways.filter(touches), 0.75);
    const dense = crowd(), paintKind = (kind) => shown.forEach((one) => related.edges.get(one) === kind && line(pen, one, opacity(one, dense)));
    paintKind(2);
    resting = setTimeout(() => { paintKind(1); paintKind(2); }, 90);
  }

  function label() {
    let above = -Infinity;
    for (const one of [...labels].reverse()) {  // from the top; labels that would overlap are left out
      const at = view.y + view.scale * one.y;
      one.made.style.transform = `translateY(${at}px)`;
      one.made.hidden = at < 0 || at > room.high || at < above + 15;
      if (!one.made.hidden) above = at;
    }
    for (const one of parts) {
      const from = view.x + view.scale * one.left, to = view.x + view.scale * one.right;
      one.made.hidden = !one.name || !here(one.place) || to < 0 || from > room.wide;
      one.made.style.transform = `translateX(${(from + to) / 2}px) translateX(-50%)`;
      one.made.style.maxWidth = `${Math.max(to - from + 20, 0)}px`;
    }
  }

  // While the view moves, the picture is only shifted; it is drawn anew when the view has come to rest.
  function shift() {
    const by = view.scale / drawn.scale;
    scene.style.transform = `translate(${view.x - by * drawn.x}px, ${view.y - by * drawn.y}px) scale(${by})`;
    label();
    clearTimeout(settling);
    settling = setTimeout(draw, 120);
  }

  // ------------------------------------------------------------------ view
  function fit() {
    const seen = nodes.filter((node) => node.active);
    const left = Math.min(...seen.map((node) => node.x - node.width / 2)), right = Math.max(...seen.map((node) => node.x + node.width / 2));
    const top = Math.min(...seen.map((node) => node.y)) - NODE, bottom = Math.max(...seen.map((node) => node.y)) + NODE;
    const aside = seen.some((node) => node.kind === "mlp") ? Math.min(places.size[0] - right, 0.09 * (bottom - top)) : 20;
    const label = 66, above = parts[0].name ? 26 : 0, space = { wide: room.wide - label - 16, high: room.high - 24 - above };
    view.scale = Math.min(space.wide / (right + aside - left), space.high / (bottom - top), 1.6);
    view.x = label + (space.wide - view.scale * (right + aside - left)) / 2 - view.scale * left;
    view.y = 12 + above + (space.high - view.scale * (bottom - top)) / 2 - view.scale * top;
    tip.hidden = true;
    draw();
  }

  function zoom(factor, x = room.wide / 2, y = room.high / 2) {
    const scale = Math.min(Math.max(view.scale * factor, 0.05), 8), by = scale / view.scale;
    Object.assign(view, { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by });
    shift();
  }

  function bring(node) {
    const x = view.x + view.scale * node.x, y = view.y + view.scale * node.y, edge = 60;
    if (view.scale < 0.5) view.scale = 0.8;
    else if (x > edge + 40 && x < room.wide - edge && y > edge && y < room.high - edge) return;
    view.x = room.wide / 2 - view.scale * node.x;
    view.y = room.high / 2 - view.scale * node.y;
    draw();
  }

  // ------------------------------------------------------------------ words on a node or an edge
  const score = (one) => (one.score === null ? "" : `${one.score}`);
  const describe = (node) => `${node.name}: ${text(links.own[node.place].length)} edges in, ${text(links.out[node.place].length)} out${data.weights[node.name] ? `; ${data.weights[node.name]} of its weights` : ""}`;

  function say(words, x, y) {
    tip.replaceChildren(...words.map((line, place) => Object.assign(document.createElement("div"), { textContent: line, className: place ? "more" : "" })));
    tip.hidden = false;
    tip.style.left = `${Math.min(x + 14, room.wide - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 16, room.high - tip.offsetHeight - 8)}px`;
  }

  function point(node, edge, x, y) {
    if (node !== state.hover || edge !== state.edge) {
      Object.assign(state, { hover: node, edge });
      relate();
    }
    if (node) say([describe(node), `upstream ${text(related.above)} nodes, downstream ${text(related.below)}`], x, y);
    else if (edge) {
      const texts = [score(edge) && `score ${score(edge)}`, edge.part === "both" && edge.other !== null && `there ${edge.other}`, edge.dangles && "dangling", layout === data.union && `at ${keptAt(edge.edge.name)}`];
      say([edge.edge.name, texts.filter(Boolean).join(", ")].filter(Boolean), x, y);
    } else tip.hidden = true;
  }

  // Roles at which an edge of the union is kept, by the circuit that is shown and the one beside it.
  function keptAt(name) {
    const found = new Set();
    for (const place of [state.circuit, state.compare]) {
      for (const number of place === null ? [] : data.order[place]) {
        const reader = data.readers[data.edges[2 * number]], writer = data.nodes[data.writers[data.edges[2 * number + 1]]];
        const [plain, role] = reader[0].split("@");
        if (`${writer[0].split("@")[0]}->${plain}` === name) found.add(role);
      }
    }
    return data.parts.map(([role]) => role).filter((role) => found.has(role)).join(", ");
  }

  function nearest(x, y) {
    const at = { x: (x - view.x) / view.scale, y: (y - view.y) / view.scale }, reach = 5 / view.scale;
    let best = null, least = reach * reach;
    for (let place = shown.length - 1; place >= 0; place--) {
      const [x1, y1, x2, y2, x3, y3, x4, y4] = shown[place].edge.curve;
      if (at.y > y1 + reach || at.y < y4 - reach || at.x < Math.min(x1, x2, x3, x4) - reach || at.x > Math.max(x1, x2, x3, x4) + reach) continue;
      let px = x1, py = y1;
      for (let step = 1; step <= 24; step++) {
        const t = step / 24, s = 1 - t;
        const qx = s * s * s * x1 + 3 * s * s * t * x2 + 3 * s * t * t * x3 + t * t * t * x4;
        const qy = s * s * s * y1 + 3 * s * s * t * y2 + 3 * s * t * t * y3 + t * t * t * y4;
        const dx = qx - px, dy = qy - py, along = Math.min(Math.max(((at.x - px) * dx + (at.y - py) * dy) / (dx * dx + dy * dy || 1), 0), 1);
        const away = (at.x - px - along * dx) ** 2 + (at.y - py - along * dy) ** 2;
        if (away < least) { least = away; best = shown[place]; }
        px = qx; py = qy;
      }
    }
    return best;
  }

  // Which roles a head attends to, and which attend to it.
  function between(node) {
    const names = (found) => parts.filter((one) => found.has(one.place)).map((one) => one.name).join(", ");
    const from = new Set(ties.filter((one) => one.node === node).map((one) => one.reader.part));
    const to = new Set(ties.filter((one) => one.reader.of.includes(node.place)).map((one) => one.node.part));
    const texts = [from.size && `keys and values from ${names(from)}`, to.size && `keys and values for ${names(to)}`];
    return texts.filter(Boolean).map((words) => Object.assign(document.createElement("p"), { textContent: words }));
  }

  // The attention edges of a head: those of its queries at its own role, or where roles are joined all of them.
  function attended(node) {
    const own = circuitsShown().map((circuit) => attention[circuit]);
    if (node.kind !== "head" || own.includes(null)) return [];
    const at = (circuit) => [...(circuit.get(node.label) ?? [])].filter((one) => !layout.leads || one.startsWith(`${parts[node.part].name}<-`));
    const [first, second] = own.map(at), made = document.createElement("ul");
    const which = (one) => (second === undefined ? "" : !second.includes(one) ? "first" : first.includes(one) ? "both" : "second");
    for (const one of new Set([...first, ...(second ?? [])])) {
      const line = document.createElement("li");
      line.append(Object.assign(document.createElement("span"), { textContent: `${node.label}[${one}]` }), Object.assign(document.createElement("span"), { textContent: which(one) }));
      made.append(line);
    }
    made.className = "attention";
    return [Object.assign(document.createElement("p"), { textContent: `attention edges: ${text(made.children.length)} open` }), made];
  }

  function detail() {
    const node = state.held, box = byId("detail");
    box.hidden = node === null;
    if (node === null) return;
    const title = Object.assign(document.createElement("h2"), { textContent: node.name });
    const about = Object.assign(document.createElement("p"), { textContent: `upstream ${text(upstream(node).size - 1)} nodes, downstream ${text(downstream(node).size - 1)}` });
    const list = (words, found, name, other) => {
      if (!found.length) return [Object.assign(document.createElement("p"), { textContent: `no edges ${words}` })];
      const made = document.createElement("ul"), most = 8;
      for (const one of [...found].reverse().slice(0, most)) {
        const line = document.createElement("li"), button = Object.assign(document.createElement("button"), { type: "button", textContent: name(one) });
        button.addEventListener("click", () => hold(other(one), true));
        line.append(button, Object.assign(document.createElement("span"), { textContent: score(one) }));
        made.append(line);
      }
      const more = found.length > most ? `${text(found.length)} edges ${words}, the strongest ${most}` : `${text(found.length)} edges ${words}`;
      return [Object.assign(document.createElement("p"), { textContent: more }), made];
    };
    const through = (one) => (one.edge.reader.kind in { q: 0, k: 0, v: 0 } ? ` to ${one.edge.reader.kind}` : "");
    box.replaceChildren(
      title, about,
      ...between(node),
      ...attended(node),
      ...list("in", links.own[node.place], (one) => one.edge.writer.name + through(one), (one) => one.edge.writer),
      ...list("out", links.out[node.place], (one) => one.edge.reader.name, (one) => nodes[one.edge.reader.of.find((at) => nodes[at].active) ?? one.edge.reader.of[0]]),
    );
  }

  // ------------------------------------------------------------------ choosing a node
  function hold(node, focus = false) {
    Object.assign(state, { held: node, hover: null, edge: null });
    tip.hidden = true;
    relate();
    if (node && focus) { bring(node); settle(node); }
  }

  function settle(node) {
    document.querySelectorAll('.node[tabindex="0"]').forEach((one) => one.setAttribute("tabindex", "-1"));
    node.made.setAttribute("tabindex", "0");
    node.made.setAttribute("aria-label", describe(node));
    node.made.focus({ preventScroll: true });
  }

  // The next node in the direction of an arrow key: of the row, or the nearest of the next row.
  function step(node, key) {
    const flat = key === "ArrowLeft" || key === "ArrowRight", sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
    const ahead = nodes.filter((one) => one.active && one !== node && (flat ? Math.abs(one.y - node.y) < NODE && sign * (one.x - node.x) > 0 : sign * (one.y - node.y) > NODE / 2));
    const away = (one) => (flat ? Math.abs(one.x - node.x) : Math.abs(one.y - node.y) * 4 + Math.abs(one.x - node.x));
    return ahead.sort((a, b) => away(a) - away(b))[0];
  }

  function find(words) {
    const wanted = words.trim().toLowerCase();
    const same = (one) => [one.name.toLowerCase(), one.name.toLowerCase().split("@")[0]].includes(wanted);
    const of = new Set(readers.filter(same).flatMap((one) => one.of));
    const exact = nodes.filter((one) => same(one) || of.has(one.place));
    state.found = new Set(wanted === "" ? [] : exact.length ? exact : nodes.filter((one) => one.name.toLowerCase().startsWith(wanted)));
    relate();
    return [...state.found].filter((one) => one.active);
  }

  // ------------------------------------------------------------------ pointer
  const pointers = new Map();
  let travelled = 0;
  const local = (event) => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const nodeAt = (event) => { const made = event.target.closest?.(".node"); return made ? nodes[made.dataset.node] : null; };
  const spread = () => { const [a, b] = [...pointers.values()]; return [Math.hypot(a[0] - b[0], a[1] - b[1]), (a[0] + b[0]) / 2, (a[1] + b[1]) / 2]; };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("#tools, #keys")) return;
    pointers.set(event.pointerId, local(event));
    travelled = 0;
  });
  addEventListener("pointermove", (event) => {
    const [x, y] = local(event), from = pointers.get(event.pointerId);
    if (!from) {
      if (event.target.closest?.("#stage") && !event.target.closest("#tools, #keys")) { const node = nodeAt(event); point(node, node || state.held ? null : nearest(x, y), x, y); }
      return;
    }
    const before = pointers.size === 2 ? spread() : null;
    pointers.set(event.pointerId, [x, y]);
    travelled += Math.hypot(x - from[0], y - from[1]);
    if (before) { const after = spread(); zoom(after[0] / (before[0] || 1), after[1], after[2]); }
    else if (travelled > 3) { view.x += x - from[0]; view.y += y - from[1]; stage.classList.add("moving"); tip.hidden = true; shift(); }
  });
  const lift = (event) => { pointers.delete(event.pointerId); stage.classList.remove("moving"); };
  addEventListener("pointerup", (event) => {
    const down = pointers.has(event.pointerId), node = nodeAt(event);
    lift(event);
    if (down && travelled <= 3) { if (node) settle(node); hold(node === state.held ? null : node); }
  });
  addEventListener("pointercancel", lift);
  stage.addEventListener("pointerleave", () => point(null, null));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0016)), ...local(event));
  }, { passive: false });

  // ------------------------------------------------------------------ keyboard
  byId("drawing").addEventListener("focusin", (event) => {
    const node = nodeAt(event);
    if (!node || node === state.held || !node.made.matches(":focus-visible")) return;
    bring(node);
    node.made.setAttribute("aria-label", describe(node));
    point(node, null, view.x + view.scale * node.x, view.y + view.scale * node.y);
  });
  byId("drawing").addEventListener("focusout", () => point(null, null));
  byId("drawing").addEventListener("keydown", (event) => {
    const node = nodeAt(event);
    if (!node) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); hold(node === state.held ? null : node); }
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const next = step(node, event.key);
    if (next) settle(next);
  });
  const next = (by) => {
    if (!many) return;
    byId("circuit").value = state.circuit + by;
    byId("circuit").dispatchEvent(new Event("input"));
  };
  function more(sign) {  // a tenth of the edges, at least one
    const all = total(), least = Math.min(10, all), now = amount();
    if (byId("amount").hidden || all === least) return;
    const wanted = Math.min(Math.max(now + sign * Math.max(1, Math.round(now / 10)), least), all);
    state.share = Math.log(wanted / least) / Math.log(all / least);
    byId("edges").value = 1000 * state.share;
    choose();
  }
  const keys = {
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), "0": fit, "/": () => byId("search").focus(), "?": help,
    "[": () => more(-1), "]": () => more(1), ",": () => next(-1), ".": () => next(1),
    d: theme, s: save, r: () => turn(), Escape: () => { byId("keys").hidden || help(); state.found.clear(); byId("search").value = ""; hold(null); },
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input[type=search], select") && event.key !== "Escape") return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) { event.preventDefault(); act(); }
  });

  // ------------------------------------------------------------------ controls
  function check(into, name, words, swatch) {
    const line = document.createElement("label"), input = document.createElement("input"), mark = document.createElement("span"), said = document.createElement("span");
    line.className = "check";
    Object.assign(input, { type: "checkbox", checked: true });
    input.dataset.part = name;
    mark.className = "swatch";
    mark.style.background = `var(--${swatch})`;
    said.textContent = words;
    if (into.id === "parts") said.id = `part-${name}`;
    line.append(input, mark, said, document.createElement("output"));
    into.append(line);
    input.addEventListener("input", () => { state.hidden[input.checked ? "delete" : "add"](name); choose(); });
    return mark;
  }
  const present = Object.keys(KINDS).filter((kind) => data.readers.some((one) => one[1] === kind));
  const marks = present.map((kind) => [kind, check(byId("kinds"), kind, KINDS[kind], kind)]);
  for (const part of ["first", "second", "both"]) check(byId("parts"), part, part, part);

  if (data.union) check(byId("kinds"), "leads", "heads at other roles", "quiet").classList.add("dashed");

  function compared() {
    byId("parts").hidden = state.compare === null;
    for (const [kind, mark] of marks) mark.style.background = state.compare === null ? `var(--${kind})` : "transparent";
  }
  if (many) {
    byId("choice").hidden = false;
    byId("against").hidden = false;
    Object.assign(byId("circuit"), { max: data.circuits.length - 1, value: state.circuit });
    byId("compare").append(new Option("nothing", ""), ...data.circuits.map((one, place) => new Option(one.name, place)));
    byId("compare").value = state.compare ?? "";
  }
  if (data.union) {
    byId("where").hidden = false;
    byId("role").append(new Option("side by side", ""), new Option("union of all", UNION), ...data.parts.map(([name]) => new Option(`at ${name}`, name)));
    byId("role").value = state.role ?? "";
  }
  function turn() {  // to the next choice of the switch
    if (!data.union) return;
    byId("role").selectedIndex = (byId("role").selectedIndex + 1) % byId("role").length;
    byId("role").dispatchEvent(new Event("input"));
  }
  byId("role").addEventListener("input", (event) => {
    hold(null);
    state.found.clear();
    state.role = event.target.value === "" ? null : event.target.value;
    build();
    choose();
    fit();
  });
  byId("amount").hidden = !scored;
  byId("edges").value = 1000;
  byId("layer-low").max = byId("layer-high").max = byId("layer-high").value = data.layers - 1;
  byId("layer-low").value = 0;
  byId("search").addEventListener("focus", () => {
    if (!byId("names").children.length) byId("names").append(...[...nodes, ...heads].map((one) => new Option("", one.name)));
  });
  byId("circuit").addEventListener("input", (event) => { state.circuit = Number(event.target.value); choose(); });
  byId("compare").addEventListener("input", (event) => { state.compare = event.target.value === "" ? null : Number(event.target.value); compared(); choose(); });
  byId("edges").addEventListener("input", (event) => { state.share = event.target.value / 1000; choose(); });
  byId("dangling").addEventListener("input", (event) => { state.dangling = event.target.checked; choose(); });
  const range = (own, low) => (event) => {
    state[own] = Number(event.target.value);
    if (state.low > state.high) { state[low] = state[own]; byId(low === "low" ? "layer-low" : "layer-high").value = state[own]; }
    choose();
  };
  byId("layer-low").addEventListener("input", range("low", "high"));
  byId("layer-high").addEventListener("input", range("high", "low"));
  byId("search").addEventListener("input", (event) => find(event.target.value));
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const [first] = find(byId("search").value);
    if (first) hold(first, true);
    else byId("status").textContent = byId("search").value.trim() ? `No node that is shown is called ${byId("search").value.trim()}.` : "";
  });
  byId("zoom-in").addEventListener("click", () => zoom(1.25));
  byId("zoom-out").addEventListener("click", () => zoom(0.8));
  byId("fit").addEventListener("click", fit);
  byId("theme").addEventListener("click", () => theme());
  byId("export").addEventListener("click", save);
  byId("help").addEventListener("click", help);

  function help() {
    byId("keys").hidden = !byId("keys").hidden;
    byId("help").setAttribute("aria-expanded", String(!byId("keys").hidden));
  }

  // ------------------------------------------------------------------ export
  function drawing() {
    const wide = room.wide, high = room.high, dense = crowd(), thinnest = 0.6 / view.scale;
    const seen = (one) => !one.made.classList.contains("off");
    const dim = (one) => (one.made.classList.contains("far") ? ' opacity="0.22"' : "");
    const box = (x, y, w, h, rx, fill, line, size) => `<rect x="${x}" y="${y}" width="${w}" height="${h}" rx="${rx}" fill="${fill}" stroke="${line}" stroke-width="${size}"/>`;
    const lines = shown.map((one) => {
      const [x1, y1, ...rest] = one.edge.curve.map((value) => Math.round(value * 100) / 100);
      return `<path d="M${x1},${y1}C${rest.join(",")}" stroke="${colour(one)}" stroke-opacity="${opacity(one, dense).toFixed(3)}" stroke-width="${Math.max(width(one.share), thinnest).toFixed(2)}"><title>${escaped(one.edge.name)}${one.score === null ? "" : ` ${one.score}`}</title></path>`;
    });
    const edge = { mlp: colours.mlp, head: colours.quiet };
    const made = [
      ...frames.filter((one) => one.made.getAttribute("visibility") !== "hidden").map((one) => box(one.x, one.y, one.width, one.height, 5, colours.raised, colours.line, 1)),
      ...nodes.filter(seen).map((one) => `<g${dim(one)}>${box(one.x - one.width / 2, one.y - NODE / 2, one.width, NODE, 4, colours.ground, edge[one.kind] ?? colours.ink, one === state.held ? 2.4 : 1)}<text x="${one.x}" y="${one.y + 4}" font-size="11.5" text-anchor="middle" fill="${colours.ink}">${one.label}</text></g>`),
      ...heads.filter(seen).map((one) => `<g${dim(one)}>${box(one.x - READER / 2, one.y - READER / 2, READER, READER, 2, colours[one.kind], colours.ground, 0.75)}<text x="${one.x}" y="${one.y + 2.8}" font-size="8" font-weight="700" text-anchor="middle" fill="${colours.ground}">${one.kind}</text></g>`),
    ];
    const rows = labels.filter((one) => !one.made.hidden).map((one) => `<text x="7" y="${(view.y + view.scale * one.y + 4).toFixed(1)}" font-size="11.5" fill="${colours.quiet}">${one.words}</text>`);
    const headings = parts.filter((one) => !one.made.hidden).map((one) => `<text x="${(view.x + view.scale * (one.left + one.right) / 2).toFixed(1)}" y="17" font-size="13" font-weight="650" text-anchor="middle" fill="${colours.ink}">${escaped(one.name)}</text>`);
    const ground = bands().map(([x, y, w, h]) => `<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="${colours.raised}"/>`);
    const dashed = visibleLeads().map((one) => {
      const [x1, y1, ...rest] = one.curve.map((value) => Math.round(value * 100) / 100);
      return `<path d="M${x1},${y1}C${rest.join(",")}" stroke="${colours[one.reader.kind]}" stroke-opacity="${faint().toFixed(3)}" stroke-width="${Math.max(0.8, thinnest).toFixed(2)}" stroke-dasharray="4 3"/>`;
    });
    return `<svg xmlns="${SVG}" viewBox="0 0 ${wide} ${high}" width="${wide}" height="${high}" font-family="system-ui, 'DejaVu Sans', sans-serif"><title>${escaped(document.title)}</title><rect width="${wide}" height="${high}" fill="${colours.ground}"/><g transform="translate(${view.x.toFixed(2)},${view.y.toFixed(2)}) scale(${view.scale.toFixed(4)})">${ground.join("")}<g fill="none">${dashed.join("")}${lines.join("")}</g>${made.join("")}</g>${rows.join("")}${headings.join("")}</svg>`;
  }

  function save() {
    const link = document.createElement("a"), address = URL.createObjectURL(new Blob([drawing()], { type: "image/svg+xml" }));
    Object.assign(link, { href: address, download: `${document.title.replace(/[^\w.-]+/g, "-")}.svg` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  // ------------------------------------------------------------------ begin
  build();
  compared();
  choose();
  fit();
  new ResizeObserver(() => {
    if (room.wide === stage.clientWidth && room.high === stage.clientHeight) return;
    Object.assign(room, { wide: stage.clientWidth, high: stage.clientHeight });
    draw();
  }).observe(stage);
  addEventListener("beforeprint", () => theme(false));
  requestAnimationFrame(() => setTimeout(() => { root.dataset.interactive = performance.now().toFixed(1); }));
})();
