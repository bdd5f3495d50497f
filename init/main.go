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
	m := newMachine()
	defer m.powerOff() // also after a panic: PID 1 must not return
	boot(context.Background(), m, sequence)
}
