// Runs once, in mongosh, when the database volume is empty: collections, indexes, the view, then the users.
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

for (const { name, validator, indexes } of schema.collections) {
  run({ create: name, validator });
  if (indexes.length > 0) {
    run({ createIndexes: name, indexes: indexes.map(({ keys, ...options }) => ({ key: Object.fromEntries(keys), ...options })) });
  }
}
for (const { name, source, pipeline } of schema.views) {
  run({ create: name, viewOn: source, pipeline });
}
for (const { role, privileges, roles } of access.roles) {
  run({ createRole: role, privileges, roles });
}
for (const { user, password: pwd, roles } of users) {
  run({ createUser: user, pwd, roles });
}
print(`medpix: ${schema.collections.length} collections, ${schema.views.length} view, users ${users.map((u) => u.user).join(", ")}`);
