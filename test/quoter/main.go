// Command quoter is a whole guest: PID 1 that asks the kernel for one report over the bytes 1 to 64 and says what it saw.
//
// Its lines on the console are "provider", the files of a report entry, and the report in hexadecimal.
package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/ampoule-vm/ampoule/internal/guest"
)

func main() {
	// Without this console there is nobody to tell of an error, either; the test misses the lines.
	if err := guest.Mount(); err == nil {
		if console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0); err == nil {
			if err := quote(console); err != nil {
				fmt.Fprintln(console, "quoter: error:", err)
			}
		}
	}
	guest.PowerOff()
}

func quote(console io.Writer) error {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return err
	}
	data := make([]byte, 64)
	for i := range data {
		data[i] = byte(i + 1)
	}
	r, err := report.Create(client, &report.Request{InBlob: data})
	if err != nil {
		return err
	}
	defer r.Destroy()
	entries, err := os.ReadDir("/sys/kernel/config/tsm/report")
	if err != nil || len(entries) != 1 {
		return fmt.Errorf("report entries %v: %w", entries, err)
	}
	files, err := os.ReadDir("/sys/kernel/config/tsm/report/" + entries[0].Name())
	if err != nil {
		return err
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	resp, err := r.Get()
	if err != nil {
		return err
	}
	fmt.Fprintln(console, "quoter: provider", strings.TrimSpace(resp.Provider))
	fmt.Fprintln(console, "quoter: files", strings.Join(names, " "))
	_, err = fmt.Fprintln(console, "quoter: report", hex.EncodeToString(resp.OutBlob))
	return err
}
