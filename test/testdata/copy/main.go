// Copy copies a dataset to a result, as a program or as a WASI module.
package main

import (
	"os"
	"runtime"
)

func main() {
	wd, err := os.Getwd()
	if err == nil {
		os.Stdout.WriteString(os.Args[0] + " in " + wd + " on " + runtime.GOOS + "\n")
		var b []byte
		if b, err = os.ReadFile("./datasets/" + os.Args[1]); err == nil {
			err = os.WriteFile("results/"+os.Args[2], b, 0o644)
		}
	}
	if err == nil {
		if _, secret := os.ReadFile("/etc/hosts"); secret == nil && runtime.GOOS == "wasip1" {
			os.Stderr.WriteString("a module can open more than its datasets and results\n")
			os.Exit(2)
		}
		return
	}
	os.Stderr.WriteString(err.Error() + "\n")
	os.Exit(1)
}
