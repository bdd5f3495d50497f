//go:build cocos

package main

import "github.com/ampoule-vm/ampoule/internal/cvms"

// A build with this tag (--with cocos) knows the manifest source cvms:HOST:PORT. It is the only one that speaks HTTP/2.
func init() {
	openServer = func(addr string, stop func()) server { return cvms.Open(addr, stop) }
}
