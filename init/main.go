// Command init is PID 1 of an Ampoule image, and all of its user space.
//
// It runs the table in boot.go once and cuts the power. It takes no arguments, reads no environment, and opens no
// shell, whatever happens.
package main

import (
	"context"

	"github.com/ampoule-vm/ampoule/internal/workload"
)

func main() {
	if workload.IsStub() {
		workload.Stub() // becomes the workload, or exits
	}
	live(context.Background(), newMachine(), sequence)
}

// live is all of PID 1: the boot, and then the power is cut, also after a panic, for PID 1 must not return.
func live(ctx context.Context, m *machine, steps []step) {
	defer m.powerOff()
	boot(ctx, m, steps)
}
