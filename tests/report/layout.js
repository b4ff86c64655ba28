// What is wrong with the layout and the colours of a page, in words.
function faults(page) {
  const found = [], width = page.documentElement.clientWidth;
  const told = e => `<${e.tagName.toLowerCase()}> “${e.textContent.trim().slice(0, 40)}”`;
  const style = e => page.defaultView.getComputedStyle(e);
  // On a phone heads of tables are for screen readers alone.
  const hidden = e => e.closest("thead") && style(e.closest("thead")).position == "absolute";
  const seen = e => e.checkVisibility() && !hidden(e) && e.getClientRects().length;
  const say = (what, e) => found.push(`${what}: ${told(e)}`);
  if (page.documentElement.scrollWidth > width) found.push("the page scrolls sideways");

  // Text of an element itself, without that of its children.
  const lines = e => [...e.childNodes]
    .filter(n => n.nodeType == 3 && n.textContent.trim())
    .flatMap(n => { const r = page.createRange(); r.selectNode(n); return [...r.getClientRects()]; });
  for (const e of page.querySelectorAll("body *:not(svg *)")) {
    if (!seen(e)) continue;
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth) say("wider than its box", e);
    const box = e.getBoundingClientRect();
    for (const r of lines(e))
      if (r.left < box.left - 1 || r.right > box.right + 1 || r.right > width + 1 || r.left < 0)
        say("text outside its box", e);
  }

  for (const svg of page.querySelectorAll("svg")) {
    if (!seen(svg)) continue;
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(e => [e, e.getBoundingClientRect()]);
    texts.forEach(([e, r], i) => {
      if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 ||
          r.bottom > box.bottom + 1) say("text outside its chart", e);
      for (const [other, o] of texts.slice(i + 1)) {
        const across = Math.min(r.right, o.right) - Math.max(r.left, o.left);
        const up = Math.min(r.bottom, o.bottom) - Math.max(r.top, o.top);
        // Boxes of lines are higher than letters.
        if (across > 1 && up > 4) say(`over ${told(other)}`, e);
      }
    });
  }

  const parts = color => color.match(/[\d.]+/g).map(Number);
  const light = color => parts(color).slice(0, 3)
    .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const color = style(e).backgroundColor;
      if (parts(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  for (const e of page.querySelectorAll("body *")) {
    if (!seen(e) || !lines(e).length) continue;
    const pair = [e.closest("svg") ? style(e).fill : style(e).color, ground(e)].map(light);
    pair.sort((a, b) => b - a);
    if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) say("pale text", e);
  }
  return found;
}
