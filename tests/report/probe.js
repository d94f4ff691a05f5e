// asked of a page in a browser by test_browser.py, which gets what it measures
addEventListener("load", () => {
  const found = { wrong: [], width: innerWidth };
  const say = (words) => found.wrong.push(words);
  const name = (one) => `${one.tagName}.${one.className.baseVal ?? one.className}`;
  try {
    if (document.documentElement.scrollWidth > innerWidth) {
      say(`page is ${document.documentElement.scrollWidth} wide`);
    }
    for (const one of document.querySelectorAll("main *")) {
      if (one.closest(".scroll,.pan img,svg,[popover],details:not([open])")) continue;
      if (one.getBoundingClientRect().right > innerWidth + 1) say(`${name(one)} is cut off`);
    }
    const loaded = performance.getEntriesByType("resource").map((one) => one.name);
    for (const one of loaded) if (!one.startsWith("data:")) say(`loaded ${one}`);
    for (const one of document.images) {
      one.loading = "eager";
      if (!one.src.startsWith("data:")) say("a picture is not in the file");
    }
    // columns that stay put
    const box = document.querySelector(".scroll");
    const head = box.querySelector("tbody .row .first");
    const before = head.getBoundingClientRect().left;
    box.scrollLeft = 200;
    found.scrolled = box.scrollLeft;
    if (Math.abs(head.getBoundingClientRect().left - before) > 1) say("the first column moves");
    box.scrollTop = 150;
    const top = box.querySelector("thead th").getBoundingClientRect().top;
    if (top < box.getBoundingClientRect().top - 1) say("the head moves");
    box.scrollLeft = box.scrollTop = 0;
    // rows that fold
    const group = document.querySelector(".fold").closest("tbody");
    const rows = () => [...group.querySelectorAll(".row")].map((one) => one.offsetHeight > 0);
    if (!rows().every(Boolean)) say("rows are folded to begin with");
    group.querySelector(".fold").click();
    if (rows().some(Boolean)) say("rows do not fold");
    group.querySelector(".fold").click();
    // what a row means
    const button = document.querySelector("button[popovertarget]");
    const word = document.getElementById(button.getAttribute("popovertarget"));
    button.click();
    const place = word.getBoundingClientRect();
    if (!word.matches(":popover-open")) say("words on a row do not open");
    if (place.left < 0 || place.right > innerWidth) say("words on a row are cut off");
    word.hidePopover();
    // both colours, what is written on what
    for (const theme of ["light", "dark"]) {
      document.getElementById(`theme-${theme}`).click();
      found[theme] = getComputedStyle(document.body).backgroundColor;
      for (const one of document.querySelectorAll("body *")) {
        const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || one.closest("svg,script,style,[popover]") || !one.offsetHeight) continue;
        const ratio = contrast(getComputedStyle(one).color, ground(one));
        if (ratio < 4.5) say(`${theme}: contrast of ${name(one)} is ${ratio.toFixed(2)}`);
      }
    }
  } catch (error) { say(String(error)); }
  parent.postMessage(JSON.stringify(found), "*");
});

function channels(colour) { return colour.match(/[\d.]+/g).map(Number); }

function ground(one) {
  for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if ((channels(colour)[3] ?? 1) > 0) return colour;
  }
  return "rgb(255,255,255)";
}

function contrast(...colours) {
  const [low, high] = colours.map((colour) => {
    const [r, g, b] = channels(colour).map((c) => {
      c /= 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
