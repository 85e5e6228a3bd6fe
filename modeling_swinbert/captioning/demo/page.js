// Buttons with `data-seek` jump the player; the segment that is playing is marked.
(() => {
  const player = () => document.querySelector("#clip video");
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-seek]");
    const video = player();
    if (!button || !video) return;
    video.currentTime = Number(button.dataset.seek) + 0.001;
    video.play().catch(() => {});
  });
  document.addEventListener("timeupdate", () => {
    const time = player()?.currentTime;
    for (const each of document.querySelectorAll("[data-seek][data-until]")) {
      const playing = time >= Number(each.dataset.seek) && time < Number(each.dataset.until);
      each.classList.toggle("playing", playing);
    }
  }, true);
  // What is explained: the segment that is playing, or else the first, or the whole clip.
  window.swinbertSelected = () => {
    const segment = document.querySelector(".segment.playing") ?? document.querySelector(".segment:not(.failed)");
    const caption = (segment ?? document).querySelector("[data-caption]")?.textContent;
    const range = segment ? {start: Number(segment.dataset.seek), end: Number(segment.dataset.until)} : {};
    return {caption, ...range};
  };
  // The explanation is a page of its own, as high as its content.
  document.addEventListener("load", (event) => {
    if (!event.target.matches?.("#explanation iframe")) return;
    const frame = event.target, body = frame.contentDocument.body;
    new ResizeObserver(() => { frame.style.height = `${body.scrollHeight}px`; }).observe(body);
    frame.scrollIntoView({behavior: "smooth", block: "nearest"});
  }, true);
  // A clip that the browser cannot play can be captioned: the page says so, in the place of Gradio's error.
  document.addEventListener("loadeddata", ({target}) => mark(target, false), true);
  document.addEventListener("error", ({target}) => mark(target, true), true);
  function mark(video, unplayable) {
    if (video !== player()) return;
    document.querySelector("#chosen").classList.toggle("unplayable", unplayable);
    if (!unplayable) return;
    setTimeout(() => {
      for (const toast of document.querySelectorAll(".toast-item"))
        if (toast.textContent.includes("not playable")) toast.querySelector("button")?.click();
    }, 50);
  }
})();
