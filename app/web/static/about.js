// The about page: its counts and figures are asked for, so that they are those of this service.

import { getJson } from "./api.js";
import { byId, plural, spoken } from "./dom.js";

async function counts() {
  const { facets, total, cases } = await getJson("/facets");
  const modalities = facets.modality.map(({ value, count }) => plural(count, `${value} image`)).join(" and ");
  const caseCount = cases === undefined ? "" : ` of ${plural(cases, "case")}`;
  byId("counts").textContent = `This service holds ${plural(total, "image")}${caseCount} of MedPix 2.0: ${modalities}.`;
}

async function figures() {
  const { items } = await getJson("/models");
  const lines = [];
  for (const { card, serves } of items) {
    for (const task of serves) {
      const scores = card.metrics.test?.[task];
      if (!scores) continue;
      const interval = scores.accuracy_95 ? ` (95 % interval ${scores.accuracy_95.map((value) => value.toFixed(2)).join(" to ")})` : "";
      lines.push(`${spoken(task)}: ${card.name} is right on ${(100 * scores.accuracy).toFixed(1)} % of the test images${interval}.`);
    }
  }
  if (lines.length) byId("figures").prepend(`${lines.join(" ")} `);
}

// What stands in the page without them stays true.
await Promise.allSettled([counts(), figures()]);
