/* Means of floats as XNNPACK sums them: taps column by column in groups of nine, each group added as a tree. Channels last. */
#include "isa.h"
#include "window.h"

enum { LANES = 16 };

static const float ZEROS[LANES];

void hwq_pool_nines(const hwq_pool *p)
{
    const hwq_window *w = &p->window;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), taps = hwq_window_taps(w), high = w->kernel[1];
    for (int64_t i = 0; i < p->batch * outputs; i++) {
        const float *image = (const float *)p->x + i / outputs * inputs * p->channels;
        int64_t origin[3], inside = 0;
        hwq_window_origin(w, i % outputs, origin);
        for (int64_t t = 0; t < taps; t++) inside += hwq_window_pixel(w, origin, 0, t % high, t / high) >= 0;
        const float inverse = 1.0f / (float)inside;
        float *out = (float *)p->out + i * p->channels;
        for (int64_t at = 0; at < p->channels; at += LANES) {
            const int64_t width = p->channels - at < LANES ? p->channels - at : LANES;
            float total[LANES] = {0};
            for (int64_t first = 0; first < taps; first += 9) {
                const float *x[9];
                for (int64_t t = 0; t < 9; t++) {
                    const int64_t tap = first + t, pixel = tap < taps ? hwq_window_pixel(w, origin, 0, tap % high, tap / high) : -1;
                    x[t] = pixel < 0 ? ZEROS : image + pixel * p->channels + at;
                }
                for (int64_t j = 0; j < width; j++)
                    total[j] += ((x[2][j] + x[3][j]) + (x[4][j] + x[5][j])) + (((x[0][j] + x[1][j]) + x[8][j]) + (x[6][j] + x[7][j]));
            }
            for (int64_t j = 0; j < width; j++) out[at + j] = total[j] * inverse;
        }
    }
}
