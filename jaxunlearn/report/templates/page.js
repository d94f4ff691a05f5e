"use strict";
// the page is whole without this: it remembers the colours and shows words beside what is pointed at
(() => {
  const key = "jaxunlearn-theme";
  const radios = document.querySelectorAll('input[name="theme"]');
  try {
    const kept = document.getElementById("theme-" + localStorage.getItem(key));
    if (kept) kept.checked = true;
  } catch (error) { /* some browsers keep nothing for files */ }
  for (const radio of radios) {
    radio.addEventListener("change", () => {
      try { localStorage.setItem(key, radio.value); } catch (error) { /* as above */ }
    });
  }
  if (!HTMLElement.prototype.showPopover) return;
  for (const button of document.querySelectorAll("button[popovertarget]")) {
    const word = document.getElementById(button.getAttribute("popovertarget"));
    button.removeAttribute("title");
    let hovered = 0;
    button.addEventListener("pointerenter", (event) => {
      if (event.pointerType !== "mouse") return;
      hovered = setTimeout(() => {
        if (word.matches(":popover-open")) return;
        word.classList.add("near");
        word.showPopover();
        const place = button.getBoundingClientRect();
        const left = Math.min(place.left, innerWidth - word.offsetWidth - 16);
        const below = place.bottom + 8 + word.offsetHeight < innerHeight;
        word.style.left = Math.max(16, left) + "px";
        word.style.top = Math.max(8, below ? place.bottom + 8 : place.top - word.offsetHeight - 8) + "px";
      }, 250);
    });
    button.addEventListener("pointerleave", () => {
      clearTimeout(hovered);
      if (word.classList.contains("near") && word.matches(":popover-open")) word.hidePopover();
    });
    button.addEventListener("click", () => clearTimeout(hovered));
    word.addEventListener("toggle", (event) => {
      if (event.newState === "closed") word.classList.remove("near"), word.removeAttribute("style");
    });
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
