/**
 * Linear warmup from 0 to `peak` over `warmup` steps, then half a cosine down to `floor` at `steps`.
 * @param step 0 for the first update
 */
export function learningRateAt(
  step: number,
  { peak, floor, warmup, steps }: { peak: number; floor: number; warmup: number; steps: number },
): number {
  if (step < warmup) return (peak * (step + 1)) / warmup;
  if (step >= steps) return floor;
  const progress = (step - warmup) / Math.max(1, steps - warmup);
  return floor + 0.5 * (peak - floor) * (1 + Math.cos(Math.PI * progress));
}
