"use strict";
// Everything here is a convenience: without it the page shows the same, side by side.
(() => {
  const root = document.querySelector("#pictures");
  if (root) {
    const state = { zoom: 1, x: 0, y: 0 }; // x, y in parts of a picture's side
    const views = [...root.querySelectorAll(".row .view")];
    const label = root.querySelector("#zoom");
    const draw = () => {
      const most = state.zoom - 1;
      state.x = Math.min(0, Math.max(-most, state.x));
      state.y = Math.min(0, Math.max(-most, state.y));
      root.style.setProperty("--zoom", state.zoom);
      root.style.setProperty("--x", 100 * state.x + "%");
      root.style.setProperty("--y", 100 * state.y + "%");
      root.classList.toggle("zoomed", state.zoom > 1);
      label.textContent = Math.round(10 * state.zoom) / 10 + "×";
    };
    // the point (u, v) of the view, in 0..1, stays where it is
    const zoom = (factor, u = 0.5, v = 0.5) => {
      const next = Math.min(16, Math.max(1, state.zoom * factor));
      state.x = u - (u - state.x) * next / state.zoom;
      state.y = v - (v - state.y) * next / state.zoom;
      state.zoom = next;
      draw();
    };
    const move = (dx, dy) => { state.x += dx; state.y += dy; draw(); };
    const reset = () => { Object.assign(state, { zoom: 1, x: 0, y: 0 }); draw(); };
    const keys = {
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": reset,
      ArrowLeft: () => move(0.1, 0), ArrowRight: () => move(-0.1, 0),
      ArrowUp: () => move(0, 0.1), ArrowDown: () => move(0, -0.1),
    };
    for (const view of views) {
      const fingers = new Map();
      const place = (event) => {
        const box = view.getBoundingClientRect();
        return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      };
      view.addEventListener("dragstart", (event) => event.preventDefault());
      view.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && state.zoom === 1) return; // the page scrolls
        event.preventDefault();
        zoom(event.deltaY < 0 ? 1.25 : 0.8, ...place(event));
      }, { passive: false });
      view.addEventListener("pointerdown", (event) => {
        view.setPointerCapture(event.pointerId);
        fingers.set(event.pointerId, place(event));
      });
      view.addEventListener("pointermove", (event) => {
        const before = fingers.get(event.pointerId);
        if (!before) return;
        const now = place(event);
        if (fingers.size === 2) {
          const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
          const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
          zoom(far(now) / Math.max(far(before), 0.01), other[0], other[1]);
        } else {
          move(now[0] - before[0], now[1] - before[1]);
        }
        fingers.set(event.pointerId, now);
      });
      for (const end of ["pointerup", "pointercancel"]) {
        view.addEventListener(end, (event) => fingers.delete(event.pointerId));
      }
      view.addEventListener("keydown", (event) => {
        if (keys[event.key] && !event.ctrlKey && !event.metaKey) {
          event.preventDefault();
          keys[event.key]();
        }
      });
    }
    const controls = root.querySelector(".controls");
    controls.hidden = false;
    controls.addEventListener("click", (event) => {
      const what = event.target.dataset.zoom;
      if (what) ({ in: () => zoom(1.5), out: () => zoom(1 / 1.5), reset })[what]();
    });
    for (const article of root.querySelectorAll(".crop")) {
      const slider = article.querySelector(".slider");
      const pictures = [...article.querySelectorAll(".row img")];
      const pair = slider.querySelector(".pair");
      const [under, over] = slider.querySelectorAll("img");
      const [left, right] = slider.querySelectorAll("select");
      const range = slider.querySelector("input");
      const show = () => {
        for (const [image, select] of [[under, left], [over, right]]) {
          const chosen = pictures[select.value];
          image.src = chosen.src;
          image.alt = chosen.alt;
          image.classList.toggle("pixelated", chosen.classList.contains("pixelated"));
          image.width = chosen.width;
          image.height = chosen.height;
        }
        pair.style.setProperty("--cut", range.value + "%");
      };
      for (const input of [left, right, range]) input.addEventListener("input", show);
      const follow = (event) => {
        if (!event.buttons) return;
        const box = pair.getBoundingClientRect();
        range.value = 100 * (event.clientX - box.left) / box.width;
        show();
      };
      pair.addEventListener("pointerdown", (event) => {
        pair.setPointerCapture(event.pointerId);
        follow(event);
      });
      pair.addEventListener("pointermove", follow);
      slider.hidden = false;
      show();
    }
  }
  for (const figure of document.querySelectorAll(".chart")) {
    const svg = figure.querySelector("svg");
    const out = figure.querySelector(".readout");
    const marks = [...svg.querySelectorAll("circle")];
    let at = -1;
    const tell = (index) => {
      if (marks[at]) marks[at].classList.remove("near");
      at = index;
      marks[at].classList.add("near");
      out.textContent = marks[at].querySelector("title").textContent;
    };
    svg.addEventListener("pointermove", (event) => {
      if (!marks.length) return;
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * 420 / box.width;
      const y = (event.clientY - box.top) * 230 / box.height;
      const far = (mark) => Math.hypot(mark.cx.baseVal.value - x, mark.cy.baseVal.value - y);
      tell(marks.reduce((best, mark, i) => (far(mark) < far(marks[best]) ? i : best), 0));
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key]; // the last value comes first
      if (!step || !marks.length) return;
      event.preventDefault();
      tell(Math.min(marks.length - 1, Math.max(0, at + step)));
    });
  }
})();
