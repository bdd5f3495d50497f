// Module does what its first argument says, as a WASI module. It does without fmt, which takes long to compile.
package main

import (
	"os"
	"strconv"
	"strings"
)

func main() {
	switch os.Args[1] {
	case "exit":
		n, _ := strconv.Atoi(os.Args[2])
		os.Stdout.WriteString("out " + strings.Join(os.Args[2:], ",") + " " + os.Getenv("GREETING") + "\n")
		os.Stderr.WriteString("err\n")
		os.Exit(n)
	case "copy": // from to
		b, err := os.ReadFile(os.Args[2])
		if err == nil {
			err = os.WriteFile(os.Args[3], b, 0o644)
		}
		if err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
}
