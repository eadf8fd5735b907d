// Sizes and times as texts, as in together/wording.py.

export function size(bytes) {
  if (!(bytes > 0)) return "nothing";
  const [unit, scale, digits] = bytes >= 5e7 ? ["GB", 1e9, bytes < 1e10 ? 1 : 0] : bytes >= 5e4 ? ["MB", 1e6, 1] : ["kB", 1e3, 1];
  return `${(bytes / scale).toFixed(digits)} ${unit}`;
}

export function milliseconds(value) {
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

/** Of a link, in bits as networks are named. */
export function bandwidth(bytesPerSecond) {
  const bits = bytesPerSecond * 8;
  return bits >= 1e9 ? `${(bits / 1e9).toFixed(1)} Gbit/s` : `${Math.max(1, Math.round(bits / 1e6))} Mbit/s`;
}

export function perSecond(tokens) {
  return `${tokens >= 100 ? tokens.toFixed(0) : tokens.toFixed(1)} tokens/s`;
}
