"""The page's style sheet: one column of text, pairs of charts, a phone and a sheet of paper."""

CSS = """
:root{color-scheme:light;--paper:#fff;--ink:#1a1f24;--soft:#3d464e;--muted:#56606a;--line:#e3e6e9;
--edge:#d3d8dd;--tint:#f4f6f8;--green:#009E73;--red:#D55E00;--amber:#E69F00}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,
-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;
font-variant-numeric:tabular-nums}
main,header,footer{max-width:1080px;margin:0 auto;padding:0 28px}
header{padding-top:40px}
h1,h2,h3{line-height:1.25;margin:0;text-wrap:balance;overflow-wrap:anywhere}
h1{font-size:30px;letter-spacing:-.01em}
h2{font-size:22px;margin-bottom:6px}
h3{font-size:16px;margin:26px 0 6px}
p{margin:8px 0;max-width:72ch;overflow-wrap:anywhere}
.eyebrow{color:var(--muted);font-size:14px;margin:0 0 4px}
.lead{color:var(--muted);margin-top:6px}
section{margin-top:52px}
.verdict{margin-top:24px;border:1px solid var(--edge);border-left:8px solid var(--muted);
border-radius:6px;padding:22px 26px 20px}
.verdict.met{border-left-color:var(--green)}
.verdict.doubtful{border-left-color:var(--amber)}
.verdict.missed,.verdict.diverged{border-left-color:var(--red)}
.verdict h2{display:flex;gap:12px;align-items:flex-start;font-size:24px;margin:0 0 10px}
.verdict h2 svg{flex:none;width:30px;height:30px}
.verdict p{margin:6px 0;max-width:86ch}
.caution{background:var(--tint);border-radius:4px;padding:10px 14px;margin-top:14px!important;
max-width:none!important}
.keys{display:grid;grid-template-columns:repeat(4,1fr);gap:16px;margin:20px 0 0;padding:0}
.keys div{border-top:2px solid var(--ink);padding-top:8px;min-width:0}
.keys dt{font-size:14px;color:var(--muted)}
.keys dd{margin:0;overflow-wrap:anywhere}
.keys dd.big{font-size:28px;line-height:1.2;font-weight:650;letter-spacing:-.01em}
.keys dd.small{font-size:14px;color:var(--soft)}
.scroll{overflow-x:auto;margin:14px 0 6px}
table{border-collapse:collapse;width:100%;font-size:15px;line-height:1.35}
caption{text-align:left;color:var(--muted);font-size:14px;padding:0 8px 6px}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--line);vertical-align:top;
unicode-bidi:isolate;white-space:nowrap}
thead th{font-size:13px;color:var(--soft);font-weight:600;border-bottom:2px solid var(--ink);
vertical-align:bottom;white-space:normal;min-width:66px}
th:first-child,td:first-child{text-align:left;padding-left:8px}
tbody th{font-weight:500;white-space:normal;overflow-wrap:anywhere;min-width:120px}
tr.all th,tr.all td{font-weight:650;background:var(--tint)}
tr.cut td{text-align:left;color:var(--muted);font-style:italic}
td.bad,td.good{font-weight:650}
td small{display:block;color:var(--muted);font-weight:400;font-size:13px}
.note{font-size:14px;color:var(--muted)}
.charts{display:grid;grid-template-columns:1fr 1fr;gap:32px 40px;margin-top:20px;align-items:start}
.charts.three{grid-template-columns:repeat(3,1fr);gap:30px}
figure{margin:0;min-width:0}
.charts figure{display:grid;grid-template-rows:subgrid;grid-row:span 2;row-gap:10px}
.charts figcaption{margin:0}
figcaption{font-weight:650;font-size:15px;line-height:1.35;margin-bottom:10px;
overflow-wrap:anywhere}
figcaption span{display:block;font-weight:400;font-size:14px;color:var(--muted)}
figure svg{display:block;width:100%;height:auto;overflow:visible}
figure text{font-size:12px;fill:var(--ink)}
figure text.m{fill:var(--muted);font-size:11.5px}
figure text.b,figure tspan.b{font-weight:700}
figure text.halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
.narrow{display:none}
.slim{max-width:560px}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:5px 20px;font-size:15px;margin:12px 0}
.facts dt{color:var(--muted)}
.facts dd{margin:0;overflow-wrap:anywhere;min-width:0}
.options{columns:3;column-gap:32px;font-size:13px;margin:10px 0;padding:0;list-style:none}
.options li{break-inside:avoid;overflow-wrap:anywhere;padding:1px 0}
.options b{font-weight:400;color:var(--muted)}
code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;
overflow-wrap:anywhere}
pre{background:var(--tint);border-radius:4px;padding:10px 14px;margin:10px 0;white-space:pre-wrap}
summary{cursor:pointer;font-size:15px;padding:4px 0}
.warnings{border-left:4px solid var(--amber);padding:2px 0 2px 16px;margin:16px 0 0}
ul.plain{padding-left:20px;max-width:76ch}
ul.plain li{margin:5px 0;overflow-wrap:anywhere}
footer{margin-top:56px;padding-bottom:48px;color:var(--muted);font-size:14px}
@media (max-width:940px){.charts,.charts.three{grid-template-columns:1fr}
.charts figure{max-width:580px}.options{columns:2}}
@media (max-width:720px){.keys{grid-template-columns:1fr 1fr}}
@media (max-width:560px){
main,header,footer{padding:0 16px}header{padding-top:24px}
h1{font-size:25px}.verdict{padding:16px 16px 14px}.verdict h2{font-size:20px}
.keys dd.big{font-size:23px}
.wide{display:none}.narrow{display:block}
.facts{grid-template-columns:1fr;gap:0}.facts dd{margin-bottom:8px}.options{columns:1}}
@media screen and (max-width:560px){
.scroll{overflow:visible}.scroll table,.scroll tbody{display:block}
.scroll caption{display:block;padding:0 0 4px}
.scroll thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.scroll tr{display:grid;grid-template-columns:repeat(3,1fr);gap:6px 12px;padding:10px 0 12px;
border-bottom:1px solid var(--edge)}
.scroll th,.scroll td{display:block;border:0;padding:0;text-align:left;white-space:normal}
.scroll tbody th,.scroll tr.cut td{grid-column:1/-1;font-weight:650}
.scroll td::before{content:attr(data-label);display:block;color:var(--muted);font-size:12px;
font-weight:400;line-height:1.25;overflow-wrap:anywhere}
.scroll tr.cut td{font-weight:400}
.scroll tr.all{background:var(--tint);box-shadow:-8px 0 0 var(--tint),8px 0 0 var(--tint)}
.scroll tr.all th,.scroll tr.all td{background:none}}
@media screen and (prefers-color-scheme:dark){
:root{color-scheme:dark;--paper:#14181c;--ink:#e8ebee;--soft:#c3cad1;--muted:#9aa5b0;--line:#2b3238;
--edge:#3c454d;--tint:#1f252b;--green:#2fc49a;--red:#f0803c}
figure text{fill:var(--ink)}
figure [stroke="#1a1f24"],figure [stroke="#000000"]{stroke:var(--ink)}
figure [stroke="#56606a"]{stroke:var(--muted)}
figure [stroke="#dfe3e7"]{stroke:var(--line)}
figure [stroke="#fff"]{stroke:var(--paper)}
figure [fill="#fff"]{fill:var(--paper)}
figure [fill="#1a1f24"],figure [fill="#000000"]{fill:var(--ink)}
figure [fill="#e3e6e9"]{fill:#4a545d}
figure [fill="#FBE3AE"]{fill:#5c4a1c}
figure [fill="#0072B2"]{fill:#4aa6e0}
figure [stroke="#0072B2"]{stroke:#4aa6e0}}
@media print{
@page{size:A4;margin:15mm}
body{font-size:10.5pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main,header,footer{padding:0;max-width:none}header{padding-top:0}
h1{font-size:20pt}h2{font-size:15pt}.verdict h2{font-size:16pt}
section{margin-top:26pt}section[aria-labelledby=groups-heading]{break-before:page}p{orphans:4;widows:4}h2,h3,figcaption{break-after:avoid}
figure,.verdict,tr,.warnings,.keys{break-inside:avoid}
.keys{grid-template-columns:repeat(4,1fr)}.keys dd.big{font-size:17pt}
.wide,.lone .narrow{display:none}.narrow,.lone .wide{display:block}
.scroll{break-inside:avoid}section>p{break-after:avoid}
.charts{grid-template-columns:1fr 1fr;gap:18pt 24pt}
.charts.three{grid-template-columns:repeat(3,1fr);gap:18pt 16pt}
.charts figure{max-width:none}
.scroll{overflow:visible}table{font-size:9.5pt}th,td{padding:4px 6px}
thead{display:table-header-group}thead th{font-size:8.5pt;min-width:0}
.options{columns:3;font-size:8.5pt}
details::details-content{content-visibility:visible;display:block;height:auto}
footer{margin-top:24pt;padding-bottom:0}}
"""
