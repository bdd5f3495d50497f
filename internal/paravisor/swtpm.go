package paravisor

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
)

// startLimit is how long swtpm may take to listen.
const startLimit = 10 * time.Second

// Software runs a software TPM (swtpm) whose state is in dir, started up, until stop is called. The error wraps
// exec.ErrNotFound where there is no swtpm: on Debian the package of that name.
func Software(ctx context.Context, dir string) (tpm transport.TPM, stop func(), err error) {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, nil, fmt.Errorf("software TPM: %w", err)
	}
	socket := filepath.Join(dir, "tpm")
	cmd := exec.Command(program, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--flags", "not-need-init,startup-clear")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("software TPM: %w", err)
	}
	end := func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return transport.FromReadWriter(conn), func() { conn.Close(); end() }, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			end()
			return nil, nil, fmt.Errorf("software TPM: %w\n%s", err, out.Bytes())
		}
	}
}
