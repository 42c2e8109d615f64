// The place for a photo: choose, drop, paste, camera, examples. Gradio runs this once, with `element`, `trigger`, `upload`.
const send = async (file) => {
  if (!file) return;
  element.classList.add("sending");
  try {
    const { path } = await upload(file);
    trigger("upload", { path });
  } catch (error) {
    trigger("upload", { path: null });
  } finally {
    element.classList.remove("sending");
  }
};
const firstImage = (files) => [...(files || [])].find((file) => file.type.startsWith("image/")) || (files || [])[0];

element.addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  send(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  send(firstImage(event.dataTransfer.files));
});
document.addEventListener("paste", (event) => {
  const file = firstImage(event.clipboardData && event.clipboardData.files);
  if (!file || element.offsetParent === null) return; // text, or the other tab
  event.preventDefault();
  send(file);
});

let camera = null;
const stop = () => {
  if (camera) camera.getTracks().forEach((track) => track.stop());
  camera = null;
};
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) {
    if (event.target.closest(".zone:not(.full)")) element.querySelector("input[type=file]").click();
    return;
  }
  const dialog = element.querySelector("dialog"), video = dialog.querySelector("video");
  if (button.dataset.example) trigger("select", { name: button.dataset.example });
  if (button.dataset.act === "clear") trigger("clear", {});
  if (button.dataset.act === "camera") {
    dialog.showModal();
    dialog.addEventListener("close", stop, { once: true });
    try {
      camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      dialog.open ? (video.srcObject = camera) : stop();
    } catch {
      dialog.querySelector(".failed").hidden = false;
    }
  }
  if (button.dataset.act === "close") dialog.close();
  if (button.dataset.act === "capture" && video.videoWidth) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    canvas.toBlob((blob) => send(new File([blob], "camera.png", { type: "image/png" })));
  }
});
