/* Counts the lines of a dataset and exits with the status that its argument says. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
	FILE *in = fopen("datasets/numbers.csv", "r"), *out = fopen("./results/lines", "w");
	int c, lines = 0;

	if (argc != 2 || !in || !out)
		return 1;
	while ((c = getc(in)) != EOF)
		lines += c == '\n';
	fprintf(out, "%d\n", lines);
	return fclose(out) ? 1 : atoi(argv[1]);
}
