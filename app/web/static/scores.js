// The figures of the models: of the last evaluation, or of their cards.

import { at } from "./address.js";
import { getJson } from "./api.js";

export const TASKS = ["modality", "location", "location_category"];

/** A time as people write it. */
export const moment = (iso) => new Date(iso).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });

/** A model's figures of a task: of the last evaluation if it is of this version, else of its card; null if of neither. */
export function scoresOf(card, task, report) {
  const found = report?.models[card.name];
  const scored = found?.version === card.version && found.tasks[task]?.scores;
  if (scored) return { ...scored, split: report.split.split };
  const split = ["test", "dev"].find((name) => card.metrics[name]?.[task]);
  return split ? { ...card.metrics[split][task], split } : null;
}

/** The last evaluation; null if there was none, which is no fault. */
export async function lastReport() {
  try {
    return await getJson(at("/evaluation"));
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}
