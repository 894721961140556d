package jail

var deniedOnThisArch []uint32
