// Command bridge joins its standard input and output with a TCP address: QEMU starts it for each connection of a guest to
// the metadata service of a cloud.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

func main() {
	c, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	go io.Copy(c, os.Stdin)
	io.Copy(os.Stdout, c)
}
