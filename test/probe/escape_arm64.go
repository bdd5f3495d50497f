package main

var onlyHere = map[string]uintptr{}
