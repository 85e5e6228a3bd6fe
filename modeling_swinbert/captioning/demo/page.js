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
  for (const event of ["error", "loadeddata"])
    document.addEventListener(event, ({type, target}) => {
      if (target === player()) document.querySelector("#chosen").classList.toggle("unplayable", type === "error");
    }, true);
})();
