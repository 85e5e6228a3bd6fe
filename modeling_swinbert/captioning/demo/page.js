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
  document.addEventListener("error", (event) => {
    const status = document.querySelector("#chosen .status");
    if (event.target === player() && status)
      status.textContent = "This browser cannot play the clip. It can be captioned all the same.";
  }, true);
})();
