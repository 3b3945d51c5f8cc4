// Two devices of one user with @tandem/client: both edit while they are away, and both keep what they did.
//   (cd ../../sdk/typescript && npm install && npm run build)
//   npm install && npm start
import { CrossDeviceSync } from "@tandem/client";

const url = process.argv[2] ?? "http://localhost:3001";

async function account() {
  const answer = await fetch(`${url}/api/auth/register`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ email: `ann-${crypto.randomUUID()}@example.com`, password: "correct horse" }),
  });
  if (!answer.ok) throw new Error(`register: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

/** Resolves when `fits` is true of what the device shows. */
function shows(device, fits) {
  return new Promise((resolve) => {
    const off = device.watch("recipe", (recipe) => {
      if (!fits(recipe)) return;
      queueMicrotask(() => off());
      resolve(recipe);
    });
  });
}

const { token } = await account();
const laptop = new CrossDeviceSync(token, { name: "Laptop", type: "desktop" }, { url });
const phone = new CrossDeviceSync(token, { name: "Phone", type: "mobile" }, { url });
laptop.on("message", ({ message }) => console.log("laptop is told", message));

// It shows at once, and is on the server's disk when the promise resolves.
const { version } = await laptop.updateSession("recipe", { title: "Bread", flour: 500, likes: 0 });
console.log("laptop wrote version", version);
console.log("phone shows", await shows(phone, (recipe) => recipe?.flour === 500));

// What is done offline waits, and changes only what it means to change.
laptop.disconnect();
phone.disconnect();
const edits = [
  laptop.edit("recipe", (recipe) => ({ ...recipe, title: "Rye bread" })),
  phone.edit("recipe", (recipe) => ({ ...recipe, flour: 450 })),
  ...[laptop, phone].map((device) => device.applyOps("recipe", [{ op: "inc", path: "/likes", value: 1 }])),
];
laptop.connect();
phone.connect();
await Promise.all(edits);
const isMerged = (recipe) => recipe?.title === "Rye bread" && recipe.flour === 450 && recipe.likes === 2;
console.log("laptop shows", await shows(laptop, isMerged));
console.log("phone shows", await shows(phone, isMerged));

await phone.sendMessage(laptop.deviceId, "the oven is hot");
await Promise.all([laptop.close(), phone.close()]);
