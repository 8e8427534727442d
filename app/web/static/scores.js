// The figures of the models: of the last evaluation, or of their cards.

import { at } from "./address.js";
import { getJson } from "./api.js";

export const SCORED_TASKS = ["modality", "location", "location_category"];

/** A time as people write it. */
export const moment = (iso) => new Date(iso).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });

/** A model's figures of a task: of the last evaluation if it is of this version, else of its card; null if of neither. */
export function scoresOf(card, task, report) {
  const found = report?.models[card.name];
  const scored = found?.version === card.version && found.tasks[task]?.scores;
  if (scored) return { ...scored, split: report.split.split, coverage: found.tasks[task].confident?.coverage };
  const split = ["test", "dev"].find((name) => card.metrics[name]?.[task]);
  // Before an evaluation the coverage is that of the images held out in cross-validation.
  return split ? { ...card.metrics[split][task], split, coverage: card.metrics.out_of_fold?.[task]?.confident.coverage } : null;
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
