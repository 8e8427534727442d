// Runs in mongosh when the database volume is empty: collections, indexes, the view, then the users. Run again by hand
// (.env.example says how), it makes what is missing and brings roles and passwords up to date.
//
// The definitions are data: collections.json is the file that `medpix seed` checks the database against, access.json
// says who may do what. The users come last: the health check logs in as one of them, so a container whose
// initialisation broke off never counts as healthy.

const fs = require("fs");
const path = require("path");

const access = JSON.parse(fs.readFileSync(path.join(__dirname, "access.json"), "utf8"));
const schema = JSON.parse(fs.readFileSync(process.env.MEDPIX_COLLECTIONS || "/medpix/collections.json", "utf8"));
const medpix = db.getSiblingDB(access.database);

function run(command) {
  const answer = medpix.runCommand(command);
  if (!answer.ok) {
    throw new Error(`${Object.keys(command)[0]}: ${answer.errmsg}`);
  }
  return answer;
}

// The passwords become part of addresses (mongodb://api:PASSWORD@mongo), where other characters mean something.
function password(name) {
  const value = process.env[name] || "";
  if (!/^[A-Za-z0-9_-]{12,}$/.test(value)) {
    throw new Error(
      `${name} must have 12 or more letters, digits, "-" or "_". Set it, for example to the output of ` +
        "`openssl rand -hex 24`, then remove the half-made database with `docker compose down` and " +
        "`docker volume rm medpix_db`, and start again."
    );
  }
  return value;
}

// All are read before anything is made.
const users = access.users.map((user) => ({ ...user, password: password(user.password_from) }));

const made = run({ listCollections: 1, nameOnly: true }).cursor.firstBatch.map(({ name }) => name);
const roles = run({ rolesInfo: 1 }).roles.map(({ role }) => role);
const known = run({ usersInfo: 1 }).users.map(({ user }) => user);

for (const { name, validator, indexes } of schema.collections) {
  if (made.includes(name)) {
    continue; // `medpix seed` compares it with its definition
  }
  // The validators of the records come from their models: `medpix seed` adds them before it writes a document.
  run(validator ? { create: name, validator } : { create: name });
  if (indexes.length > 0) {
    run({ createIndexes: name, indexes: indexes.map(({ keys, ...options }) => ({ key: Object.fromEntries(keys), ...options })) });
  }
}
for (const { name, source, pipeline } of schema.views) {
  if (!made.includes(name)) {
    run({ create: name, viewOn: source, pipeline });
  }
}
for (const { role, ...rights } of access.roles) {
  run({ [roles.includes(role) ? "updateRole" : "createRole"]: role, ...rights });
}
for (const { user, password: pwd, roles: granted } of users) {
  run({ [known.includes(user) ? "updateUser" : "createUser"]: user, pwd, roles: granted });
}
print(`medpix: ${schema.collections.length} collections, ${schema.views.length} view, users ${users.map((u) => u.user).join(", ")}`);
