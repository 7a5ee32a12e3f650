package debuggraph

// pageHTML is the template of the page. The page loads nothing: styles and script are
// inline, and the steps are drawn before it is sent. So it can be saved and read
// elsewhere.
const pageHTML = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>build graph</title>
<style nonce="{{.Nonce}}">
* { box-sizing: border-box; }
body { margin: 0; height: 100vh; display: grid; grid-template: auto 1fr / 1fr 340px; font: 13px/1.45 system-ui, sans-serif; color: #1d2733; background: #f4f6f8; }
header { grid-column: 1 / 3; display: flex; gap: 14px; align-items: center; padding: 8px 14px; background: #fff; border-bottom: 1px solid #d5dce3; }
header h1 { font-size: 15px; margin: 0; }
header .grow { flex: 1; }
input, select, button { font: inherit; padding: 3px 8px; border: 1px solid #b8c2cc; border-radius: 4px; background: #fff; color: inherit; }
#canvas { overflow: hidden; position: relative; }
#graph { width: 100%; height: 100%; display: block; cursor: grab; }
#graph.dragging { cursor: grabbing; }
.key { vertical-align: middle; }
aside { overflow: auto; padding: 12px 14px; background: #fff; border-left: 1px solid #d5dce3; overflow-wrap: anywhere; }
aside h2 { font-size: 13px; margin: 14px 0 6px; }
aside h2:first-child { margin-top: 0; }
aside p { margin: 4px 0; }
aside ol, aside ul { margin: 0; padding-left: 20px; }
code { font: 11px/1.4 ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 2px 6px 2px 0; vertical-align: top; font-weight: normal; }
th { color: #66727f; }
.muted { color: #66727f; }
.node rect.box { fill: #fff; stroke: #b8c2cc; }
.node { cursor: pointer; }
.node.registered rect.box { stroke-dasharray: 4 3; }
.node.running rect.box { fill: #fff7dd; }
.node.failed rect.box { fill: #fde8e6; stroke: #c0392b; }
.node.selected rect.box { stroke: #1d2733; stroke-width: 2.5; }
.bar { fill: #9aa6b2; }
.waiting .bar { fill: #6b8fb5; }
.running .bar { fill: #e0a100; }
.done .bar, .cached .bar { fill: #3c9a5f; }
.failed .bar { fill: #c0392b; }
.node text { font: 11.5px system-ui, sans-serif; fill: #1d2733; }
.node text.status { font-size: 10px; fill: #66727f; text-anchor: end; }
.chip text { font-size: 10px; font-weight: 600; text-anchor: middle; fill: #fff; }
.chip.builds text { fill: #1d2733; }
.edge { fill: none; stroke: #a8b3be; stroke-width: 1.3; }
.edge.merge { stroke-dasharray: 3 4; stroke: #8a5bb5; }
.edge.near { stroke: #1d2733; stroke-width: 2; }
.dim { opacity: .15; }
#graph.far text, #graph.far .chip { display: none; }
</style>
</head>
<body>
<header>
<h1>build graph</h1>
<span class="muted">{{.Time}}</span>
<span>{{if lt (len .Nodes) .Total}}first {{len .Nodes}} of {{end}}{{.Total}} steps, {{len .Builds}} builds</span>
<form method="get">
<select name="build" id="build" aria-label="build">
<option value="">all builds</option>
{{range .Builds}}<option value="{{.Ref}}"{{if eq .Ref $.Build}} selected{{end}}>{{.Label}} {{.Ref}}</option>
{{end}}</select>
<button>show</button>
</form>
<input type="search" id="search" placeholder="find a step" aria-label="find a step">
<span class="muted" id="found"></span>
<span class="grow"></span>
<button type="button" id="fit">fit</button>
<select id="refresh" aria-label="refresh"><option value="0">still</option><option value="2">every 2 s</option><option value="10">every 10 s</option></select>
<a href="?format=json{{if .Build}}&amp;build={{.Build}}{{end}}">JSON</a>
</header>
<main id="canvas">
<svg id="graph" data-width="{{.Width}}" data-height="{{.Height}}" viewBox="-20 -20 {{.Width}} {{.Height}}" role="img" aria-label="the steps of the active builds">
<g>{{range .Edges}}
<path class="edge{{if .Merge}} merge{{end}}" data-from="{{.From}}" data-to="{{.To}}" d="{{.Path}}"/>{{end}}
</g>
{{range .Nodes}}<g class="node {{.Status}}" data-index="{{.Index}}" transform="translate({{.X}} {{.Y}})"><title>{{.Name}}</title><rect class="box" width="230" height="50" rx="5"/><rect class="bar" width="5" height="50" rx="2"/><text x="13" y="18">{{.Short}}</text><text class="status" x="224" y="42">{{.Status}}</text>{{range .Chips}}<g class="chip {{if .Lent}}lent{{else}}builds{{end}}" transform="translate({{.X}} 36)"><circle r="8.5" {{if .Lent}}fill="hsl({{.Hue}} 60% 42%)"{{else}}fill="hsl({{.Hue}} 60% 92%)" stroke="hsl({{.Hue}} 60% 42%)" stroke-width="1.5"{{end}}/><text y="3.5">{{.Label}}</text></g>{{end}}{{if .More}}<text x="124" y="40">+{{.More}}</text>{{end}}</g>
{{end}}</svg>
</main>
<aside>
<div id="details">
<h2>Step</h2>
<p class="muted">Click a step to see which builds lend it their session. {{if not .Nodes}}Nothing is being built.{{end}}</p>
</div>
<h2>Builds</h2>
<table id="builds">
{{range .Builds}}<tr data-build="{{.Ref}}"><td><svg width="24" height="18" class="key"><rect width="24" height="18" rx="9" fill="hsl({{.Hue}} 60% 42%)"/><text x="12" y="13" text-anchor="middle" font-size="11" font-weight="600" fill="#fff">{{.Label}}</text></svg></td>
<td><a href="?build={{.Ref}}">{{.Ref}}</a><br><span class="muted">session <code>{{.Session}}</code><br>since {{.Since}}, owns {{.Owned}}, builds {{.Active}}{{if .Bases}}<br>chained on{{range .Bases}} {{.}}{{end}}{{end}}</span></td></tr>
{{end}}</table>
<h2>Legend</h2>
<p>A step asks the sessions of the builds in its circles, from left to right, for secrets, agents, files and logins.</p>
<p><svg width="18" height="18" class="key"><circle cx="9" cy="9" r="8" fill="#66727f"/></svg> the build lends its session: it solved the step, and a build that builds the step is chained on it</p>
<p><svg width="18" height="18" class="key"><circle cx="9" cy="9" r="7.5" fill="#eef1f4" stroke="#66727f" stroke-width="1.5"/></svg> the build is building the step</p>
<p>A dashed step is registered, and no build has asked for it. A dashed line leads to the step that took over.</p>
</aside>
<script type="application/json" id="data" nonce="{{.Nonce}}">{{.Graph}}</script>
<script nonce="{{.Nonce}}">
(function () {
  "use strict";
  var graph = JSON.parse(document.getElementById("data").textContent);
  var svg = document.getElementById("graph");
  var canvas = document.getElementById("canvas");
  var nodes = Array.from(svg.querySelectorAll(".node"));
  var edges = Array.from(svg.querySelectorAll(".edge"));
  var width = Number(svg.dataset.width), height = Number(svg.dataset.height);
  var store = { get: function (k) { try { return JSON.parse(sessionStorage.getItem("graph." + k)); } catch (e) { return null; } },
    set: function (k, v) { try { sessionStorage.setItem("graph." + k, JSON.stringify(v)); } catch (e) { } } };
  var view = { x: 0, y: 0, scale: 1 };

  function show() {
    var w = canvas.clientWidth / view.scale, h = canvas.clientHeight / view.scale;
    svg.setAttribute("viewBox", [view.x, view.y, w, h].join(" "));
    svg.classList.toggle("far", view.scale < 0.35);
    store.set("view" + location.search, view);
  }
  function fit(least) {
    var scale = Math.min(canvas.clientWidth / (width + 40), canvas.clientHeight / (height + 40), 1.25);
    view = { x: -20, y: -20, scale: Math.max(scale, least) };
    show();
  }
  function zoom(factor, px, py) {
    var scale = Math.min(4, Math.max(0.02, view.scale * factor));
    view.x += px / view.scale - px / scale;
    view.y += py / view.scale - py / scale;
    view.scale = scale;
    show();
  }
  svg.addEventListener("wheel", function (e) {
    e.preventDefault();
    var box = canvas.getBoundingClientRect();
    zoom(Math.exp(-e.deltaY * 0.0015), e.clientX - box.left, e.clientY - box.top);
  }, { passive: false });
  var drag = null;
  svg.addEventListener("pointerdown", function (e) { drag = { x: e.clientX, y: e.clientY, vx: view.x, vy: view.y, moved: false }; });
  window.addEventListener("pointermove", function (e) {
    if (!drag) { return; }
    if (Math.abs(e.clientX - drag.x) + Math.abs(e.clientY - drag.y) > 4) { drag.moved = true; svg.classList.add("dragging"); }
    if (!drag.moved) { return; }
    view.x = drag.vx - (e.clientX - drag.x) / view.scale;
    view.y = drag.vy - (e.clientY - drag.y) / view.scale;
    show();
  });
  window.addEventListener("pointerup", function (e) {
    var moved = drag && drag.moved;
    drag = null;
    svg.classList.remove("dragging");
    if (moved || !svg.contains(e.target)) { return; }
    var node = e.target.closest(".node");
    select(node ? Number(node.dataset.index) : -1);
  });
  window.addEventListener("resize", show);
  document.getElementById("fit").addEventListener("click", function () { fit(0.02); });
  document.getElementById("build").addEventListener("change", function () { this.form.submit(); });

  function element(tag, text, cls) {
    var el = document.createElement(tag);
    if (text !== undefined) { el.textContent = text; }
    if (cls) { el.className = cls; }
    return el;
  }
  var labels = {};
  graph.builds.forEach(function (b, i) {
    labels[b.ref] = String.fromCharCode(65 + i % 26) + (i >= 26 ? Math.floor(i / 26) : "");
  });
  // borrowers are the builds of the step that are chained on the build
  function borrowers(step, base) {
    return graph.builds.filter(function (b) { return b.chainedOn.includes(base) && step.jobs.includes(b.ref); })
      .map(function (b) { return labels[b.ref]; }).join(", ");
  }
  function list(el, title, items, ordered) {
    el.append(element("h2", title));
    if (!items.length) { el.append(element("p", "none", "muted")); return; }
    var ul = element(ordered ? "ol" : "ul");
    items.forEach(function (text) { ul.append(element("li", text)); });
    el.append(ul);
  }
  function named(digest) {
    var step = graph.steps.find(function (s) { return s.digest === digest; });
    return (step && step.name || "") + " " + digest.slice(0, 19);
  }
  function select(index) {
    nodes.forEach(function (n) { n.classList.toggle("selected", Number(n.dataset.index) === index); });
    edges.forEach(function (e) { e.classList.toggle("near", Number(e.dataset.from) === index || Number(e.dataset.to) === index); });
    var step = graph.steps[index], el = document.getElementById("details");
    store.set("selected", step ? step.digest : null);
    el.replaceChildren(element("h2", "Step"));
    if (!step) { el.append(element("p", "Click a step to see which builds lend it their session.", "muted")); return; }
    el.append(element("p", step.name));
    el.append(element("code", step.digest));
    if (step.llbDigest) { el.append(element("p", "LLB " + step.llbDigest, "muted")); }
    el.append(element("p", step.status));
    if (step.mergedInto) { el.append(element("p", "merged into " + named(step.mergedInto))); }
    list(el, "Builds that own it", step.owners.map(function (ref) { return (labels[ref] || "") + " " + ref; }), true);
    list(el, "Builds that build it", step.jobs.map(function (ref) { return (labels[ref] || "") + " " + ref; }), true);
    list(el, "Sessions, in the order asked", step.sessions.map(function (s) {
      var to = s.lent && borrowers(step, s.build);
      return (labels[s.build] || "") + " " + s.id + (s.lent ? ", lent" + (to && " to " + to) : "");
    }), true);
    list(el, "Inputs", step.inputs.map(named));
    if (step.parents) { list(el, "Parents", step.parents.map(named)); }
  }

  var search = document.getElementById("search");
  function find() {
    var q = search.value.trim().toLowerCase(), n = 0;
    nodes.forEach(function (node) {
      var step = graph.steps[Number(node.dataset.index)];
      var hit = !q || step.name.toLowerCase().includes(q) || step.digest.includes(q) || step.status === q;
      node.classList.toggle("dim", !hit);
      if (hit) { n++; }
    });
    edges.forEach(function (e) { e.classList.toggle("dim", !!q); });
    document.getElementById("found").textContent = q ? n + " found" : "";
    store.set("search", search.value);
  }
  search.addEventListener("input", find);

  var refresh = document.getElementById("refresh"), timer;
  function schedule() {
    store.set("refresh", refresh.value);
    clearTimeout(timer);
    if (refresh.value !== "0") { timer = setTimeout(function () { location.reload(); }, 1000 * Number(refresh.value)); }
  }
  refresh.value = store.get("refresh") || "0";
  refresh.addEventListener("change", schedule);
  schedule();
  search.value = store.get("search") || "";
  find();
  var saved = store.get("view" + location.search);
  if (saved) { view = saved; show(); } else { fit(0.5); }
  var chosen = location.hash.slice(1) || store.get("selected");
  var at = graph.steps.findIndex(function (s) { return s.digest === chosen; });
  if (at >= 0) { select(at); }
})();
</script>
</body>
</html>
`
