// The answers: choose a class, move the heat map's slider, copy the code. Gradio runs this once.
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (button && button.dataset.key) {
    for (const other of element.querySelectorAll("[data-key]"))
      other.setAttribute("aria-pressed", String(other.dataset.key === button.dataset.key));
    trigger("select", { key: button.dataset.key, at: performance.timeOrigin + performance.now() });
  }
  if (button && button.dataset.copy) {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = button.dataset.copied;
  }
});
element.addEventListener("input", (event) => {
  if (event.target.type === "range") event.target.parentElement.style.setProperty("--cut", `${event.target.value}%`);
});
// On a phone the answer lies below the screen: bring it into view when the first one arrives.
let had = false;
watch("value", () => {
  const has = element.querySelector(".answers") !== null;
  if (has && !had && window.innerWidth < 800) element.scrollIntoView({ behavior: "smooth", block: "start" });
  had = has;
});
