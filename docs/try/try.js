// Names what is in a photo, in the browser: decode, resize and crop as the Python package does, run the ONNX network.
const page = document.getElementById("try");
const folder = new URL(".", import.meta.url); // the site may lie in a sub-path
const korean = (navigator.language || "").startsWith("ko");
const words = korean
  ? { drop: "사진을 끌어다 놓거나, 붙여 넣거나, 눌러서 선택하세요. 휴대전화에서는 카메라를 쓸 수 있습니다.", loading: "모델을 불러오는 중…",
      done: (ms) => `사진 한 장에 ${ms} ms`, wrong: "사진으로 읽을 수 없는 파일입니다.", failed: "모델을 불러오지 못했습니다.", example: "예시 사진" }
  : { drop: "Drop a photo here, paste it, or click to choose. A phone offers its camera.", loading: "Loading the network…",
      done: (ms) => `${ms} ms for this photo`, wrong: "This file cannot be read as a photo.", failed: "The network could not be loaded.", example: "Example photo" };
page.lang = korean ? "ko" : "en";
const zone = page.querySelector(".try-zone"), shown = zone.querySelector("img"), input = page.querySelector("input");
const status = page.querySelector(".try-status"), answer = page.querySelector(".try-answer");
zone.querySelector("[data-text]").textContent = words.drop;

// Loaded when the page is opened, so that the first photo need not wait for it.
const network = (async () => {
  const ort = await import(new URL("ort.wasm.bundle.min.mjs", folder));
  ort.env.wasm.numThreads = 1; // more need headers that a static site cannot send
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", folder).href };
  const [session, metadata] = await Promise.all([
    ort.InferenceSession.create(new URL("model.onnx", folder).href),
    fetch(new URL("metadata.json", folder)).then((response) => response.json()),
  ]);
  return { ort, session, metadata };
})();

// One direction of Pillow's antialiased bilinear resize: for each output, the inputs under a triangle and their weights.
function weightsOf(size, target) {
  const scale = size / target, support = Math.max(scale, 1);
  return Array.from({ length: target }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - support + 0.5)), last = Math.min(size, Math.floor(centre + support + 0.5));
    const weights = [];
    for (let x = first; x < last; x++) weights.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) / support)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / sum) };
  });
}

// As Python rounds: a half to the even neighbour.
const rounded = (value) => (value % 1 === 0.5 && Math.floor(value) % 2 === 0 ? Math.floor(value) : Math.round(value));

// RGBA pixels -> RGB: the shorter side becomes `resize`, then the centre of `crop` x `crop`.
function cropped({ data, width, height }, resize, crop) {
  const short = Math.min(width, height);
  const w = width === short ? resize : Math.floor((resize * width) / short);
  const h = height === short ? resize : Math.floor((resize * height) / short);
  const left = rounded((w - crop) / 2), top = rounded((h - crop) / 2);
  const across = weightsOf(width, w).slice(left, left + crop), down = weightsOf(height, h).slice(top, top + crop);
  const lines = new Float32Array(height * crop * 3);
  for (let y = down[0].first; y < down[crop - 1].first + down[crop - 1].weights.length; y++)
    for (let x = 0; x < crop; x++) {
      const { first, weights } = across[x];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * data[(y * width + first + k) * 4 + c];
        lines[(y * crop + x) * 3 + c] = Math.round(sum); // Pillow rounds between the directions
      }
    }
  const out = new Uint8Array(crop * crop * 3);
  for (let y = 0; y < crop; y++)
    for (let i = 0; i < crop * 3; i++) {
      const { first, weights } = down[y];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * lines[(first + k) * crop * 3 + i];
      out[y * crop * 3 + i] = Math.min(255, Math.max(0, Math.round(sum)));
    }
  return out;
}

async function pixelsOf(blob) {
  // Upright, as EXIF says; colour profiles ignored, as the Python package does.
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.fillStyle = "white"; // what is transparent
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

let turn = 0;
async function classify(blob) {
  const mine = ++turn;
  if (!blob) return;
  answer.replaceChildren();
  status.textContent = words.loading;
  let photo;
  try {
    photo = await pixelsOf(blob);
  } catch {
    status.textContent = words.wrong;
    return;
  }
  const { ort, session, metadata } = await network.catch(() => ({}));
  if (mine !== turn) return; // a newer photo
  if (!session) {
    status.textContent = words.failed;
    return;
  }
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(blob);
  shown.hidden = false;
  zone.querySelector("[data-text]").hidden = true;
  const start = performance.now();
  const { resize_size: resize, crop_size: crop } = metadata.preprocessing;
  const tensor = new ort.Tensor("uint8", cropped(photo, resize, crop), [1, crop, crop, 3]);
  const { probabilities } = await session.run({ pixels: tensor });
  const best = [...probabilities.data.keys()].sort((a, b) => probabilities.data[b] - probabilities.data[a]).slice(0, 5);
  if (mine !== turn) return;
  status.textContent = words.done(Math.round(performance.now() - start));
  answer.replaceChildren(
    ...best.map((index) => {
      const line = document.createElement("li"), share = probabilities.data[index];
      line.style.setProperty("--share", share);
      line.dataset.synset = metadata.labels[index][0];
      line.dataset.probability = share;
      for (const text of [metadata.labels[index][1].split(",")[0], `${(100 * share).toFixed(1)} %`])
        line.append(Object.assign(document.createElement("span"), { textContent: text }));
      return line;
    }),
  );
}

const imageOf = (files) => [...(files || [])][0];
input.addEventListener("change", () => classify(imageOf(input.files)).then(() => (input.value = "")));
zone.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && input.click());
zone.addEventListener("dragover", (event) => event.preventDefault());
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  classify(imageOf(event.dataTransfer.files));
});
document.addEventListener("paste", (event) => classify(imageOf(event.clipboardData.files)));
for (const name of ["coffee", "cat", "officer"]) {
  const button = document.createElement("button"), picture = document.createElement("img");
  picture.src = new URL(`${name}.jpg`, folder);
  picture.alt = `${words.example}: ${name}`;
  button.type = "button";
  button.append(picture);
  button.addEventListener("click", async () => classify(await (await fetch(picture.src)).blob()));
  page.querySelector(".try-examples").append(button);
}
