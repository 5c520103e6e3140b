export interface Limited {
  /** Limits to report instead of the device's own. */
  limits?: Partial<Record<keyof GPUSupportedLimits, number>>;
  /** Bytes of buffers that may exist together: beyond, buffers are invalid and the error scope says "out of memory". */
  memory?: number;
}

/** A GPUDevice that has less than the one behind it, as WebGPU itself does not let a device ask for less. */
export function limitedGpu(gpu: GPUDevice, { limits = {}, memory = Number.POSITIVE_INFINITY }: Limited): GPUDevice {
  const { GPUOutOfMemoryError } = globalThis as unknown as { GPUOutOfMemoryError: new (message: string) => GPUError };
  const scopes: { filter: GPUErrorFilter; error?: GPUError }[] = [];
  let used = 0;
  const own: Partial<GPUDevice> = {
    pushErrorScope(filter) {
      scopes.push({ filter });
      gpu.pushErrorScope(filter);
      return undefined;
    },
    async popErrorScope() {
      const { error } = scopes.pop()!;
      const theirs = await gpu.popErrorScope();
      return error ?? theirs;
    },
    createBuffer(descriptor) {
      if (used + descriptor.size > memory) {
        const scope = scopes.findLast(({ filter }) => filter === "out-of-memory");
        if (scope) scope.error = new GPUOutOfMemoryError("no memory left");
        gpu.pushErrorScope("validation");
        const invalid = gpu.createBuffer({ ...descriptor, usage: 0x01 | 0x80 }); // nothing may be MAP_READ and STORAGE
        gpu.popErrorScope();
        return invalid;
      }
      used += descriptor.size;
      const buffer = gpu.createBuffer(descriptor);
      const destroy = buffer.destroy.bind(buffer);
      buffer.destroy = () => {
        used -= descriptor.size;
        return destroy();
      };
      return buffer;
    },
  };
  const reported = new Proxy(gpu.limits, {
    get: (target, name) => limits[name as keyof GPUSupportedLimits] ?? Reflect.get(target, name, target),
  });
  return new Proxy(gpu, {
    get(target, name) {
      if (name === "limits") return reported;
      if (name in own) return own[name as keyof GPUDevice];
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
