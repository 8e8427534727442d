// Runs a script of mongo-init/ where there is no mongosh: the script finds `db` and `print` as in mongosh, and
// each command goes as one line of JSON to the test, which runs it on a real mongod and answers with one line.

const fs = require("fs");

function answer() {
  const byte = Buffer.alloc(1);
  const line = [];
  while (fs.readSync(0, byte, 0, 1) === 1 && byte[0] !== 10) {
    line.push(byte[0]);
  }
  return JSON.parse(Buffer.from(line).toString("utf8"));
}

function database(name) {
  return {
    getSiblingDB: database,
    runCommand(command) {
      fs.writeSync(1, JSON.stringify({ database: name, command }) + "\n");
      const reply = answer();
      if (!reply.ok) {
        throw new Error(reply.errmsg); // as mongosh does
      }
      return reply;
    },
  };
}

globalThis.db = database("test");
globalThis.print = (text) => fs.writeSync(2, text + "\n");
try {
  require(process.argv[2]);
} catch (error) {
  fs.writeSync(2, `${error.message}\n`);
  process.exit(1);
}
